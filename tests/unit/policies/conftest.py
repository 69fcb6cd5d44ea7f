"""Tiny policies, built once a test and type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from valueguide.testing.tiny_models import TinyPolicy, make_tiny_policy


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TinyPolicy]:
    """tiny(type, **config): the same weights at every call."""

    def make(policy_type: str, **config: Any) -> TinyPolicy:
        return make_tiny_policy(policy_type, tmp_path / "assets", **config)

    return make
