"""`valueguide eval` on fakes: plans from arguments, and everything that an evaluation leaves behind."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.cli import eval as command
from valueguide.cli import eval_videos
from valueguide.cli.main import main
from valueguide.errors import ConfigError
from valueguide.evaluation import arms as arms_module
from valueguide.evaluation.arms import ArmSettings
from valueguide.evaluation.runner import Plan, run_plan
from valueguide.testing.fakes import FakeCritic, FakePolicy, FakeReachEnv, FakeSuite

PLAN = Plan("fake", ("reach", "touch"), ("base", "guided"), 3, 100, ArmSettings("p", "c", k=8))


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, critic = FakePolicy(noise=0.2), FakeCritic()
    monkeypatch.setattr(arms_module, "load_policy", lambda path, suite, device: policy)
    monkeypatch.setattr(arms_module, "load_critic", lambda path, suite, device: critic)
    monkeypatch.setattr(command, "resolve_suite", FakeSuite)


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--suite", "fake", *words])


def test_a_plan_says_what_the_arguments_say() -> None:
    plan = command.make_plan(
        _arguments("--arms", "base, guided,base", "--tasks", "touch", "--k", "8", "--k-sweep", "1,2,8"),
        FakeSuite(),
    )
    assert plan.tasks == ("touch",) and plan.settings.k == 8
    assert plan.arms == ("base", "guided", "guided@2")  # K = 1 is base, K = 8 is guided
    alone = command.make_plan(_arguments("--arms", "medoid", "--k", "8", "--k-sweep", "1,8"), FakeSuite())
    assert alone.arms == ("medoid", "guided@1", "guided@8")


@pytest.mark.parametrize("name", ["k", "execute", "episodes", "workers"])
def test_zero_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name}: value: expected 1 or more, found 0"):
        command.make_plan(_arguments(f"--{name}", "0"), FakeSuite())


def test_an_evaluation_leaves_rows_results_and_a_report_with_films(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = command.evaluate(PLAN, FakeSuite(), tmp_path, workers=1, videos=2)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == json.loads(json.dumps(results, allow_nan=False))
    assert stored["settings"]["k"] == 8 and stored["settings"]["tasks"] == ["reach", "touch"]
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 12
    page = (tmp_path / "report.html").read_text()
    assert page.count("<video") == 2
    printed = capsys.readouterr().out
    assert "base -> guided" in printed and str(tmp_path / "report.html") in printed


def test_json_on_stdout_is_nothing_but_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--suite", "fake", "--arms", "base", "--episodes", "1", "--videos", "0", "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["eval", *words, "--device", "cpu", "--out", str(tmp_path), "--json", "-"])
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["arms"]["base"]["n"] == 2 and result["settings"]["device"] == "cpu"
    assert "report:" in err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--execute", "3"), "execute: expected 4, the steps that the critic scores, found 3"),
        (("--beta", "-1"), "beta: expected a finite number >= 0, found -1.0"),
        (("--aggregate", "max"), "aggregate"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--suite", "fake", "--arms", "base,guided", "--out", str(out), *words])
    assert stop.value.code == 2 and not out.exists()
    assert what in capsys.readouterr().err


# --- films -------------------------------------------------------------------------------------------


def _outcomes(base: str, guided: str) -> list[dict[str, Any]]:
    """ "+-" is a success, then a failure, of one task."""
    return [
        {"arm": arm, "task": "reach", "episode": i, "success": sign == "+"}
        for arm, signs in (("base", base), ("guided", guided))
        for i, sign in enumerate(signs)
    ]


def test_films_show_gains_first_and_never_hide_the_loss() -> None:
    chosen = eval_videos._choose(_outcomes("+--+", "-+++"), 2)
    assert [(episode, caption.split()[2]) for _, episode, caption in chosen] == [(1, "saved"), (0, "lost")]
    # Gains and losses in proportion: three losses and one gain are not shown as one of each.
    mixed = [c.split()[2] for _, _, c in eval_videos._choose(_outcomes("+++-+-", "---++-"), 4)]
    assert mixed == ["saved", "lost", "lost", "lost"]
    assert eval_videos._choose(_outcomes("+", "+"), 3) == [("reach", 0, "no difference")]


def test_a_film_has_every_step_and_the_end_and_agrees_with_the_evaluation(tmp_path: Path) -> None:
    rows = run_plan(PLAN, FakeSuite, tmp_path, 1)
    factory = arms_module.ArmFactory(FakeSuite(), PLAN.settings)
    for row in rows:
        frames, success = eval_videos._film(
            PLAN, FakeSuite(), factory, row["arm"], row["task"], row["episode"]
        )
        assert (len(frames), success) == (row["steps"] + 1, row["success"])
        assert {f.shape for f in frames} == {(384, 384, 3)}


def test_paths_are_drawn_where_they_can_be_projected_and_bars_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factory = arms_module.ArmFactory(FakeSuite(), PLAN.settings)
    bars, _ = eval_videos._film(PLAN, FakeSuite(), factory, "guided", "reach", 0)
    line = [np.array([[1.0, 4.0], [7.0, 4.0]], np.float32)] * 8
    monkeypatch.setattr(FakeReachEnv, "project_candidates", lambda self, actions: line, raising=False)
    paths, _ = eval_videos._film(PLAN, FakeSuite(), factory, "guided", "reach", 0)
    plain = paths[0][0, 0]
    assert (paths[0][192, 100] != plain).any() and (bars[0][192, 100] == plain).all()
    assert (bars[0][370, 10] != plain).any() and (paths[0][370, 10] == plain).all()
    assert (paths[-1] == paths[-1][0, 0]).all()  # nothing is planned after the end


def test_suites_that_only_put_pictures_into_observations_are_filmed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = FakeReachEnv.pictures
    monkeypatch.delattr(FakeReachEnv, "pictures")
    monkeypatch.setattr(
        FakeReachEnv,
        "observe",
        lambda self: {
            "agent_pos": np.array([self._position, self._goal], np.float32),
            **({"pixels": draw(self)} if self._render else {}),
        },
    )
    factory = arms_module.ArmFactory(FakeSuite(), PLAN.settings)
    frames, _ = eval_videos._film(PLAN, FakeSuite(), factory, "base", "reach", 0)
    assert len({int(f[0, 0, 0]) for f in frames}) > 2  # it moves


def test_no_films_without_both_arms_or_without_pictures() -> None:
    assert eval_videos.make_videos(replace(PLAN, arms=("base",)), FakeSuite(), [], 3) == []
    assert eval_videos.make_videos(PLAN, FakeSuite(), [], 0) == []


def test_the_overview_needs_no_heavy_import(capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess

    probe = (
        "import sys; from valueguide.cli.main import main; main(['--help']); "
        "print(sorted({'torch', 'lerobot', 'mujoco', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]") and "valueguide demo" in done.stdout
