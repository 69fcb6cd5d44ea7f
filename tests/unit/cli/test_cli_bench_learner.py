"""`valueguide bench learner`: its figures are there and what they claim to be, on a small replay."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from valueguide.bench import learner as learner_bench
from valueguide.bench.noise_replay import ReplaySize
from valueguide.cli.main import main
from valueguide.online.learner import CriticLearner


def _bench(folder: Path, *words: str) -> dict[str, Any]:
    target = folder / "learner.json"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "learner", *words, "--device", "cpu", "--json", str(target)])
    assert stop.value.code == 0
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    small = partial(learner_bench.BenchSettings, size=ReplaySize(6, 4, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner_bench, "BenchSettings", small)
        patch.setattr(learner_bench.os, "cpu_count", lambda: 1)  # two busy threads starve on a busy machine
        words = ("--updates", "20", "--loop-updates", "3", "--batch-size", "16", "--proposals", "2")
        return _bench(tmp_path_factory.mktemp("bench"), *words, "--pairs", "2")


def test_the_phases_of_the_learner_and_the_parts_of_the_loop_are_there(result: dict[str, Any]) -> None:
    state, size = result["state"], result["settings"]["size"]
    assert size == {"offline": 6, "rollout": 4, "correction": 3} and state["observations"] > 13 * 15
    for part in ("start", "cold", "warm", "whole"):
        for name, figures in state["learner"][part].items():
            assert figures["min"] <= figures["median"] <= figures["max"], name
            assert name == "updates_per_s" or 0 <= figures["min"] <= figures["max"] <= 1, name
    # With few states nearly all are known in the end, and few at the beginning.
    hits = [state["learner"][part]["hit_rate"]["median"] for part in ("start", "warm")]
    assert hits[0] < 0.5 < hits[1]
    loop = state["loop"]["whole"]
    shares = [loop[name]["median"] for name in ("read_share", "policy_share", "update_share")]
    assert sum(shares) == pytest.approx(1.0, abs=0.1)
    for name in ("learner", "loop"):
        assert 100 < state[name]["peak_memory_mb"]["min"] <= state[name]["peak_memory_mb"]["max"]
    assert state["speedup"].keys() == {"loop"}
    assert state["speedup"]["loop"]["warm"]["min"] > 0
    assert state["resumed_identical"] is True
    assert {"load_before", "load_after"} <= result.keys()


def test_a_resumed_run_that_differs_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from valueguide.cli.common import shipped
    from valueguide.critics.checkpoint import LoadedCritic
    from valueguide.policies.load import load_policy

    policy = load_policy(shipped("wxai-state", "policy"))
    critic = LoadedCritic(Path(shipped("wxai-state", "critic")))
    settings = learner_bench.BenchSettings(batch_size=8, proposals=1, size=ReplaySize(3, 2, 2))
    bench = learner_bench.LearnerBench(tmp_path, policy, critic, settings)
    assert bench.resumed_is_identical(4)
    resume = CriticLearner.resume

    def forgets(self: CriticLearner, folder: str) -> bool:
        found = resume(self, folder)
        self.trainer.generator.manual_seed(1)
        next(iter(self.trainer.critic.parameters())).data += 1e-3
        return found

    monkeypatch.setattr(CriticLearner, "resume", forgets)
    assert not bench.resumed_is_identical(4)


def test_numbers_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "learner", "--loop-updates", "0"])
    assert stop.value.code == 2
    assert "--loop-updates: value: expected 1 or more, found 0" in capsys.readouterr().err
