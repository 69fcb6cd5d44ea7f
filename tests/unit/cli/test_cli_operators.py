"""`collect --operator scripted`: what is recorded, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from valueguide.cli.common import shipped
from valueguide.cli.main import main
from valueguide.cli.operators import check_operator
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError


def _collect(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["collect", *arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--operator", "scripted"], "--policy: expected a policy that the operator watches, found none"),
        (["--policy", "p", "--takeovers", "2"], "--takeovers: value: expected an --operator"),
        (
            ["--policy", "p", "--operator", "scripted", "--takeovers", "-1"],
            "max_takeovers: expected 0 or more, found -1",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _collect(*arguments, "--out", str(tmp_path / "data")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_only_the_tabletop_has_an_operator() -> None:
    with pytest.raises(
        ConfigError, match="--suite: expected wxai, .* whose true state it sees, found metaworld"
    ):
        check_operator("scripted", None, "policy", SimpleNamespace(name="metaworld"))


def test_takeovers_are_recorded_step_by_step(tmp_path: Path) -> None:
    result = _recorded(tmp_path, "--takeovers", "1")
    data = EpisodeDataset.open(tmp_path / "data")
    human = data.source == 1
    episodes = [data.to_episode(index) for index in range(2)]
    taken = [episode for episode in episodes if episode.metadata["interventions"]]
    assert result["human_steps"] == human.sum() > 0 and result["takeovers"] == len(taken) > 0
    for episode in taken:
        facts = episode.metadata
        assert facts["takeovers"] == 1 == len(facts["interventions"])
        assert facts["human_steps"] == sum(step.source == "human" for step in episode.steps)
        begin = facts["interventions"][0]["step"]
        first, before = episode.steps[begin], episode.steps[begin - 1]
        assert first.intervention and first.chunk_id == -1 and first.decision is None
        assert before.source == "policy" and before.executed_length == before.chunk_step + 1


def _recorded(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    policy, out = shipped("wxai-state", "policy"), str(tmp_path / "data")
    common = ["--suite", "wxai-state", "--policy", policy, "--operator", "scripted", "--workers", "1"]
    # Seeds on which the policy alone does not get the spoon.
    chosen = [
        "--tasks",
        "spoon_on_towel",
        "--episodes",
        "2",
        "--seed",
        "50001",
        "--json",
        str(tmp_path / "r"),
    ]
    assert _collect(*common, *chosen, *arguments, "--out", out) == 0
    return json.loads((tmp_path / "r").read_text())
