"""What `valueguide top` makes of messages."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from valueguide.ros.overview import Overview, render


def _message(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def _decision(number: int, **changes: Any) -> SimpleNamespace:
    fields = {"episode_id": 7, "critic_version": "b1", "chunk_id": number, "index": 1,
               "preferred": 1, "reason": "argmax", "policy_s": 0.02,
              "critic_s": 0.004, "latency_s": 0.025, "scores": _message(values=[0.25, 0.5])}  # fmt: skip
    return _message(**{**fields, **changes})


def _chunk(stamp_s: float) -> SimpleNamespace:
    stamp = _message(sec=int(stamp_s), nanosec=round(stamp_s % 1 * 1e9))
    return _message(header=_message(stamp=stamp))


def _full() -> Overview:
    overview = Overview("lab", now=0.0)
    overview.on("heartbeat", _message(node="policy", state="active"), 9.9, 0)
    overview.on("heartbeat", _message(node="/lab/executor", state="active"), 8.0, 0)
    statuses = [
        _message(name="/lab/policy", level=b"\x01", message="slow"),
        _message(name="/lab/recorder", level=b"\x03", message="not active"),
        _message(name="/other/policy", level=b"\x02", message="elsewhere"),
        _message(name="/lab/deeper/policy", level=b"\x02", message="elsewhere"),
        _message(name="controller_manager: joints", level=b"\x02", message="not ours"),
    ]
    overview.on("/diagnostics", _message(status=statuses), 9.0, 0)
    overview.on("task", _message(active=True, finished=False, instruction="pick the can", mode="guided",
                                 episode_id=7, reason=""), 1.0, 0)  # fmt: skip
    overview.on("intervention", _message(active=False, device="", takeovers=2), 1.0, 0)
    overview.on("executor_state", _message(state="running", commander="policy", delay_s=0.12, delay_steps=2,
                                           steps=40, holds=1, late=3, dropped=0), 9.9, 0)  # fmt: skip
    overview.on("progress", _message(value=0.4, status="ok", success=False, failure=False), 9.5, 0)
    overview.on("safety_state", _message(state=1, reason="no command for 0.40 s", passed=39, rejected=1,
                                         contact_force=math.nan), 9.0, 0)  # fmt: skip
    for number in range(3):
        overview.on("decision", _decision(number, latency_s=0.01 * (number + 1)), 9.0, 0)
    overview.on("critic_version", _message(version="b1", number=4, role="active", shadow="c2",
                                           shadow_number=6), 1.0, 0)  # fmt: skip
    for number, preferred, version in ((0, 1, "a0"), (1, 1, "c2"), (2, 0, "c2"), (9, 1, "c2")):
        beside = _decision(number, preferred=preferred, critic_version=version)
        overview.on("shadow_decision", beside, 9.0, 0)
    overview.on("chunk", _chunk(100.25), 9.0, 100_400_000_000)
    for tick in range(100):
        overview.count("front/image", tick / 10)
    return overview


def test_a_request_for_help_shows_while_its_episode_runs() -> None:
    overview = _full()
    assert overview.facts(10.0)["help"] is None
    overview.on("help", _message(episode_id=7, step=24, reason="value low"), 9.0, 0)
    assert "help       WANTED at step 24: value low" in render(overview.facts(10.0))
    overview.on("task", _message(active=True, finished=False, instruction="", mode="guided", episode_id=8,
                                 reason=""), 9.5, 0)  # fmt: skip
    assert overview.facts(10.0)["help"] is None


def test_facts_are_json_and_complete() -> None:
    facts = json.loads(json.dumps(_full().facts(10.0), allow_nan=False))
    nodes = {node.pop("name"): node for node in facts["nodes"]}
    assert set(nodes) == {"policy", "executor", "recorder"}
    policy = {"state": "active", "heartbeat_age_s": pytest.approx(0.1), "diagnostic": "warning: slow"}
    assert nodes["policy"] == policy
    assert nodes["executor"]["state"] == "SILENT"
    assert nodes["recorder"]["state"] == "inactive" and nodes["recorder"]["heartbeat_age_s"] is None
    topics = {topic["topic"]: topic for topic in facts["topics"]}
    assert topics["front/image"]["rate_hz"] == pytest.approx(10, abs=0.3)
    assert topics["decision"]["messages"] == 3
    assert "heartbeat" not in topics
    assert facts["commander"] == "policy"
    assert facts["task"]["takeovers"] == 2 and facts["task"]["mode"] == "guided"
    assert facts["safety"] == {"state": "HOLDING", "reason": "no command for 0.40 s", "passed": 39,
                               "rejected": 1, "contact_force_n": None}  # fmt: skip
    decision = facts["latency_ms"]["decision"]
    assert (decision["last"], decision["median"], decision["largest"]) == pytest.approx((30, 20, 30))
    assert facts["latency_ms"]["chunk age"]["last"] == pytest.approx(150)
    assert facts["decisions"][-1]["scores"] == [0.25, 0.5]
    assert facts["critic"] == {"version": "b1", "number": 4, "role": "active", "shadow": "c2",
                               "shadow_number": 6, "shadow_scored": 2, "shadow_agrees": 1}  # fmt: skip


def test_every_fact_is_on_the_screen() -> None:
    text = "\n".join(render(_full().facts(10.0)))
    for wanted in (
        "namespace /lab", "pick the can", "episode 7, guided, takeovers 2; running", "commands   policy",
        "[########............] 40%", "HOLDING no command for 0.40 s", "rejected 1", "delay 120 ms = 2 steps",
        "late 3", "decision 30 (20)", "chunk age 150", "SILENT", "warning: slow", "front/image",
        "chunk    2  candidate 1  argmax  0.250 0.500",
        "critic     version 4 (b1), active; in shadow version 6 (c2), agrees in 1 of the last 2",
    ):  # fmt: skip
        assert wanted in text, f"{wanted!r} in\n{text}"


def test_a_human_and_a_stop_are_named() -> None:
    overview = _full()
    overview.on("intervention", _message(active=True, device="joy", takeovers=3), 10.0, 0)
    overview.on(
        "safety_state", _message(state=2, reason="e-stop", passed=0, rejected=0, contact_force=3.25), 10.0, 0
    )
    overview.on(
        "decision", _decision(9, preferred=0, reason="shadow", scores=_message(values=[math.nan])), 10.0, 0
    )
    overview.on(
        "progress", _message(value=math.nan, status="no_estimator", success=False, failure=False), 10, 0
    )
    text = "\n".join(render(overview.facts(10.0)))
    for wanted in (
        "commands   human (joy)",
        "STOPPED e-stop",
        "3.2 N",
        "preferred 0  shadow  nan",
        "unknown (no_est",
    ):
        assert wanted in text, f"{wanted!r} in\n{text}"


def test_a_critic_alone_is_named_by_its_hash() -> None:
    overview = Overview("", now=0.0)
    for version, role, line in (("b1", "shadow", "b1, shadow"), ("", "none", "none")):
        said = _message(version=version, number=0, role=role, shadow="", shadow_number=0)
        overview.on("critic_version", said, 1.0, 0)
        assert f"critic     {line}" in render(overview.facts(1.0))


def test_a_graph_that_says_little_is_shown_too() -> None:
    overview = Overview("", now=0.0)
    assert overview.silent and overview.namespace == "/"
    overview.on("heartbeat", _message(node="teleop", state="active"), 0.5, 0)
    assert not overview.silent
    text = "\n".join(render(overview.facts(1.0)))
    assert text.count("not heard") == 6 and "none yet" in text
    overview.on("task", _message(active=False, finished=True, instruction="x", mode="", episode_id=1,
                                 reason="time_limit"), 1.0, 0)  # fmt: skip
    assert "over: time_limit" in "\n".join(render(overview.facts(1.0)))


def test_a_topic_that_stopped_falls_to_zero() -> None:
    overview = Overview("", now=0.0)
    for tick in range(50):
        overview.count("command", tick / 10)
    rates = [overview.facts(now)["topics"][0]["rate_hz"] for now in (5.0, 7.5, 11.0)]
    assert rates == [pytest.approx(10, abs=0.3), pytest.approx(5, abs=0.3), 0]
