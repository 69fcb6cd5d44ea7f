"""`train online` for real: a small run, cut off at a random place, ends as one that was left alone."""

import json
import shutil

import pytest

from valueguide.cli.main import main
from valueguide.critics.scorer import LearnedCritic
from valueguide.online.replay import ReplayReader
from valueguide.policies.load import load_policy

#: They depend on the clock, or belong to the last gradient step of a process that took any.
TIMED = ("policy_share", "hit_rate", "critic_s", "td_loss", "q_mean", "member_spread")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("online") / "demos", "wxai-state")


def collected(out, suite):
    wanted = {"suite": suite, "tasks": "press_button", "episodes": 2, "workers": 1, "out": out}
    main_ok("collect", *(word for name, value in wanted.items() for word in (f"--{name}", str(value))))
    return out


def main_ok(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 0, arguments


def options(demos, out, method="aloe"):
    sizes = {"iterations": 2, "episodes": 1, "evaluations": 1, "final": 1, "critic-steps": 6,
             "policy-steps": 4, "k": 2, "offline-episodes": 2}  # fmt: skip
    flat = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return ["train", "online", "--tasks", "press_button", "--method", method, "--dataset", str(demos),
            "--out", str(out), "--json", str(out) + ".json", *flat]  # fmt: skip


def outcome(path):
    """The results without what depends on the clock."""
    results = json.loads(path.read_text())
    for line in results["learning"]:
        for name in TIMED:
            line.pop(name, None)
    return results


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(demos, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main_ok(*options(demos, whole))
    from valueguide.online.loop import OnlineRun

    for place in ("_improve", "_evaluate"):
        with monkeypatch.context() as patch:
            original = getattr(OnlineRun, place)

            def stop(self, number, *rest, original=original):
                if number == 2:
                    raise KeyboardInterrupt
                return original(self, number, *rest)

            patch.setattr(OnlineRun, place, stop)
            with pytest.raises(SystemExit) as end:
                main(options(demos, cut))
            assert end.value.code == 130
    main_ok(*options(demos, cut))
    assert outcome(tmp_path / "cut.json") == outcome(tmp_path / "whole.json")
    # What was learned is there, loads, and belongs together.
    results = outcome(tmp_path / "whole.json")
    for line in results["learning"]:
        folder = whole / f"iteration-{line['iteration']}"
        assert load_policy(folder / "policy").version == line["policy"]
        assert LearnedCritic.load(folder / "critic").version == line["critic"]
        assert 0 < line["effective_share"] <= 1
    assert {row["arm"] for row in results["evaluated"]["eval-2"]} == {"base", "guided"}
    reader = ReplayReader(whole / "replay")
    reader.refresh()
    assert {segment.store for segment in reader.segments.values()} >= {"offline", "rollout"}
    # The last collection, for the count of takeovers, is not learned from.
    assert not any(segment.episode.startswith("collect-2") for segment in reader.segments.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dagger", "awr", "none"])
def test_the_rivals_run_and_leave_what_they_do_not_learn_alone(method, demos, tmp_path):
    main_ok(*options(demos, tmp_path / method, method))
    results = outcome(tmp_path / f"{method}.json")
    learned = sorted(p.name for p in (tmp_path / method).glob("iteration-*/*"))
    assert learned == ([] if method == "none" else ["policy", "policy"])
    assert len(results["learning"]) == (0 if method == "none" else 2)
    assert [len(rows) for rows in results["collected"].values()] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["aloe", "awr"])
def test_policy_and_critic_learn_from_pictures(method, tmp_path):
    demos, out = collected(tmp_path / "demos", "wxai"), tmp_path / "run"
    main_ok(*options(demos, out, method), "--suite", "wxai", "--iterations", "1")
    results = outcome(tmp_path / "run.json")
    assert results["learning"][0]["policy"] == load_policy(out / "iteration-1" / "policy").version
    if method == "aloe":
        critic = LearnedCritic.load(out / "iteration-1" / "critic")
        assert critic.version == results["learning"][0]["critic"]
        assert {row["arm"] for row in results["evaluated"]["eval-1"]} == {"base", "guided"}
        assert all("argmax" in row for row in reasons(out)), "it did not judge pictures"


def reasons(out):
    """Of the guided episodes' decisions."""
    rows = map(json.loads, (out / "eval-1" / "episodes.jsonl").read_text().splitlines())
    return [row["reasons"] for row in rows if row["arm"] == "guided"]


def test_other_settings_and_missing_data_are_refused(demos, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "online", "--method", "awr", "--out", str(tmp_path / "a")])
    assert end.value.code == 2 and "--dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*options(demos, tmp_path / "b"), "--eval-seed", "100001"])
    assert end.value.code == 2 and "evaluation seeds" in capsys.readouterr().err
    out = tmp_path / "c"
    out.mkdir()
    shutil.copyfile(demos / "meta" / "info.json", out / "settings.json")
    with pytest.raises(SystemExit) as end:
        main(options(demos, out))
    assert end.value.code == 2 and "settings" in capsys.readouterr().err
