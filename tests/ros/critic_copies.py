"""Versions made of shipped critics: real ones whose weights differ, and some that are wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from valueguide.cli.common import shipped
from valueguide.critics.manifest import CONFIG, MANIFEST, WEIGHTS, digest, sha256
from valueguide.online.versions import CriticVersions


def publish(
    versions: CriticVersions,
    source: str = "wxai-state",
    config: Callable[[str], str] = lambda text: text,
    manifest: Callable[[dict[str, Any]], None] = lambda content: None,
) -> str:
    """A copy of a shipped critic with noise in its weights, complete by its hashes; returns its version.

    config, manifest: change what these files say.
    """
    origin, number = Path(shipped(source, "critic")), (versions.numbers() or [0])[-1] + 1
    rng = np.random.default_rng(number)
    tensors = {
        name: value * rng.normal(1, 0.3, value.shape).astype(value.dtype)
        if name.startswith("critic.") and np.issubdtype(value.dtype, np.floating)
        else value
        for name, value in load_file(origin / WEIGHTS).items()
    }
    content = json.loads((origin / MANIFEST).read_text())
    manifest(content)
    with versions.draft() as folder:
        folder.mkdir()
        save_file(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text(config((origin / CONFIG).read_text()))
        content["files"] = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}
        content["version"] = digest(content["files"])[:12]
        content["inputs_sha256"] = digest([content["normalizers"], content["instructions"]])
        (folder / MANIFEST).write_text(json.dumps(content))
        assert versions.publish(folder) == number
    return str(content["version"])


def too_short_a_state(content: dict[str, Any]) -> None:
    """Nothing that is looked at on loading; scoring throws."""
    state = content["normalizers"]["environment_state"]
    state["offset"], state["scale"] = state["offset"][:-1], state["scale"][:-1]


def other_actions(config: str) -> str:
    """A critic of a robot whose actions have other names."""
    return config.replace("- dyaw\n", "- droll\n")
