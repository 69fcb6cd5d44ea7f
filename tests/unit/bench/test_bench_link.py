"""`bench link`: what its figures are made of, and when a kill counts as held in time and as resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from valueguide.bench import link_kills
from valueguide.bench.link import CONDITIONS, LinkPlan, Stand, digest, measure
from valueguide.bench.link_kills import Killer
from valueguide.bench.link_report import report, table
from valueguide.evaluation.arms import ArmSettings
from valueguide.execution.executor import Motion
from valueguide.types import Episode, Observation, Step

MOVE = Motion(np.zeros(5, np.float32), "policy", 0, 0)


class _FakeServe:
    """A server process that dies at once; `at` is when."""

    endpoint = "tcp://127.0.0.1:7000"

    def __init__(self, clock: Any) -> None:
        self.killed = False
        self.process = SimpleNamespace(kill=self._kill, communicate=lambda: None)
        self._clock = clock

    def _kill(self) -> None:
        self.killed = True


def _killer(monkeypatch: pytest.MonkeyPatch, restart: Any = None) -> tuple[Killer, _FakeServe, list[float]]:
    """A killer at step 3 whose clock is the list's only number. The kill is at 10 s."""
    now = [10.0]
    monkeypatch.setattr(
        link_kills, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    )
    server = _FakeServe(now)
    killer = Killer(server, np.random.default_rng(0), 0.1, 0.5, restart)  # type: ignore[arg-type]
    killer.step = 3
    return killer, server, now


def _watch(killer: Killer, now: list[float], moves: str) -> None:
    """One period of 0.1 s after the other from step 3 on: m moves, h holds."""
    for number, kind in enumerate(moves, 3):
        killer.watch(number, MOVE if kind == "m" else None)
        if number == 3:
            killer._thread.join()
        now[0] += 0.1


def test_the_hold_counts_from_the_last_step_of_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    killer, server, now = _killer(monkeypatch)
    with killer:
        _watch(killer, now, "mmhmhhhhhhhh")
    facts = killer.facts(0.5, 1.0)
    assert server.killed and facts["killed"] and facts["kill_step"] == 3
    # The hold in between ended with a chunk that had arrived before the kill.
    assert facts["hold_s"] == pytest.approx(0.4) and facts["held_in_time"]
    assert facts["resume_s"] is None and facts["served_s"] is None
    assert not killer.facts(0.3, 1.0)["held_in_time"]


def test_stretched_time_is_given_in_the_robots_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    killer, _, now = _killer(monkeypatch)
    with killer:
        _watch(killer, now, "mmhhh")
    facts = killer.facts(0.5, 4.0)
    assert facts["hold_s"] == pytest.approx(0.2 / 4)


def test_another_server_at_the_same_port_and_the_first_move_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[str] = []
    other = SimpleNamespace()
    killer, _, now = _killer(monkeypatch, lambda port: (ports.append(port), other)[1])
    with killer:
        _watch(killer, now, "mmhhhhhhhhmmhm")
    facts = killer.facts(0.5, 1.0)
    assert ports == ["7000"] and killer.server is other
    assert facts["hold_s"] == pytest.approx(0.2) and facts["resume_s"] == pytest.approx(1.0)


def test_an_arm_that_never_holds_is_not_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    killer, _, now = _killer(monkeypatch)
    with killer:
        _watch(killer, now, "m" * 10)
    facts = killer.facts(0.5, 1.0)
    assert facts["hold_s"] is None and not facts["held_in_time"]


def test_an_episode_that_ends_before_its_step_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    killer, server, _ = _killer(monkeypatch)
    with killer:
        killer.watch(0, MOVE)
    assert not server.killed and not killer.facts(0.5, 1.0)["killed"]


def _row(condition: str, episode: int, success: bool, **more: Any) -> dict[str, Any]:
    return {
        "condition": condition,
        "task": "reach",
        "episode": episode,
        "success": success,
        "steps": 20,
        "truncated": not success,
        "terminated": success,
        "actions": f"{episode}",
        **more,
    }


def _moving(condition: str, episode: int, success: bool, **more: Any) -> dict[str, Any]:
    trips = [0.1, 0.2]
    real = {"holds": 2, "unused": 1, "round_trips_s": trips, "slips_s": [0.05]}
    return _row(condition, episode, success, **real, **more)


def test_rates_pairs_and_times_follow_from_the_rows() -> None:
    rows = [_row("in_process", j, True) for j in range(10)]
    rows += [_row("serve", j, True) for j in range(9)] + [_row("serve", 9, True, actions="other")]
    rows += [_moving("delayed", j, j > 2) for j in range(10)]
    found = report(rows)
    delayed = found["delayed"]
    assert (delayed["n"], delayed["successes"], delayed["rate"]) == (10, 7, 0.7)
    low, high = delayed["wilson95"]
    assert low < 0.7 < high
    assert delayed["paired"]["delta"] == pytest.approx(-0.3)
    assert (delayed["paired"]["lost"], delayed["paired"]["gained"], delayed["paired"]["n"]) == (3, 0, 10)
    assert delayed["holds"] == pytest.approx(0.1) and delayed["late_periods"] == pytest.approx(0.05)
    assert delayed["round_trip_ms"] == pytest.approx({"p50": 150.0, "p90": 200.0, "max": 200.0})
    assert delayed["unused"] == 10 and delayed["truncated"] == 3
    assert found["serve"]["same_actions"]["count"] == 9 and "holds" not in found["serve"]
    assert "paired" not in found["in_process"]
    text = table(found)
    assert "7/10" in text and "30.0 points" in text and "9 of 10" in text


def test_kills_are_counted_among_those_that_happened() -> None:
    facts = {"kill_step": 5, "held_in_time": True, "hold_s": 0.2, "served_s": 4.0, "resume_s": 5.0}
    rows = [_moving("killed", j, True, killed=True, **facts) for j in range(3)]
    rows.append(_moving("killed", 3, True, killed=True, **{**facts, "held_in_time": False, "hold_s": 0.9}))
    rows.append(_moving("killed", 4, True, killed=False, **{**facts, "hold_s": None, "resume_s": None}))
    found = report(rows)["killed"]
    assert found["killed"] == 4 and found["held_in_time"]["count"] == 3 and found["held_in_time"]["of"] == 4
    assert found["hold_s"]["max"] == 0.9 and found["resumed"]["count"] == 4
    assert "latest after 0.90 s" in table({"killed": found})
    never = [_moving("gone", 0, False, killed=True, **{**facts, "held_in_time": False, "hold_s": None})]
    assert "held in time 0; went on 1" in table(report(never))


def test_every_condition_of_an_episode_runs_next_to_the_others() -> None:
    settings = ArmSettings("p", "c")
    plan = LinkPlan("wxai-state", ("a", "b"), CONDITIONS[:2], 2, 5, settings)
    assert plan.jobs()[:4] == [(c, t, 0) for t in "ab" for c in CONDITIONS[:2]]
    assert len(plan.jobs()) == 8 and "device" not in plan.to_json()["settings"]


def test_a_part_of_what_was_measured_is_told_of_that_part_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        Stand, "run", lambda self, condition, task, j: _row(condition, j, True) | {"task": task}
    )
    plan = LinkPlan("wxai-state", ("a",), CONDITIONS[:2], 2, 5, ArmSettings("p", "c"))
    suite: Any = None
    assert len(measure(plan, suite, tmp_path)) == 4
    monkeypatch.setattr(Stand, "run", None)  # all is there
    told: list[dict[str, Any]] = []
    rows = measure(replace(plan, conditions=CONDITIONS[1:2]), suite, tmp_path, told.append)
    assert rows == told and [(row["condition"], row["episode"]) for row in rows] == [
        ("serve", 0),
        ("serve", 1),
    ]


def test_the_digest_is_of_every_bit_of_every_action() -> None:
    def episode(*values: float) -> Episode:
        seen = Observation({}, np.zeros(2, np.float32), "reach")
        return Episode([Step(seen, np.float32([value])) for value in values], seen, "reach")

    assert digest(episode(1, 2)) == digest(episode(1, 2))
    close = np.nextafter(np.float32(2), np.float32(3))
    assert len({digest(episode(1, 2)), digest(episode(1, close)), digest(episode(1))}) == 3
