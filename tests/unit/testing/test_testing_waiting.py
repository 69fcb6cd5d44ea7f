"""Waiting gives what came, and says what did not."""

from __future__ import annotations

import pytest

from valueguide.testing.waiting import until


def test_it_gives_what_the_condition_gave() -> None:
    answers = iter([0, "", "here"])
    assert until(lambda: next(answers), look_s=0.0) == "here"


def test_it_names_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match="no answer within 0.05 s"):
        until(lambda: None, "answer", wait_s=0.05, look_s=0.01)
