"""Messages to episodes: steps, holds, takeovers, plans, ends, and everything that must drop an episode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ros_episodes import PERIOD, ROBOT, START, arrivals, assembled, assert_same_episode, feed, make_episode

from valueguide.config.robot import ActionSpec
from valueguide.errors import DataError
from valueguide.ros.assemble import EpisodeAssembler
from valueguide.ros.export import Outgoing, episode_messages
from valueguide.types import Episode

LETTERS = st.text("PH-", min_size=0, max_size=9).map(lambda rest: "P" + rest)


def _dropped(found: list[Episode | DataError]) -> str:
    (error,) = found
    assert isinstance(error, DataError), error
    assert "\n" not in str(error)
    return str(error)


def _messages(sources: str = "PPP", **more: Any) -> list[Outgoing]:
    return episode_messages(ROBOT, make_episode(1, sources, **more), 7)


def _without(messages: list[Outgoing], gone: Callable[[Outgoing], bool]) -> list[tuple[Outgoing, int]]:
    return arrivals([entry for entry in messages if not gone(entry)])


def _at(stamp: int, **fields: Any) -> SimpleNamespace:
    header = SimpleNamespace(stamp=SimpleNamespace(sec=stamp // 10**9, nanosec=stamp % 10**9))
    return SimpleNamespace(header=header, **fields)


def test_golden_episode() -> None:
    """Takeover in mid-chunk, a hold, hand-back: every field of every step."""
    episode = assembled(make_episode(3, "PPHH-PPPP"))
    steps = episode.steps
    assert [s.source[0] for s in steps] == list("pphhhpppp")
    assert [s.source for s in steps][4] == "hold"
    assert [s.intervention for s in steps] == [False] * 2 + [True] * 2 + [False] * 5
    assert [s.chunk_id for s in steps] == [0, 0, -1, -1, -1, 1, 1, 1, 2]
    assert [s.chunk_step for s in steps] == [0, 1, 0, 0, 0, 0, 1, 2, 0]
    assert [s.executed_length for s in steps] == [2, 2, 1, 1, 1, 3, 3, 3, 1]  # cut short by the takeover
    assert [s.decision is not None for s in steps] == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert [s.candidates is not None for s in steps] == [s.decision is not None for s in steps]
    assert [s.planned_chunk is not None for s in steps] == [s.chunk_id >= 0 for s in steps]
    assert [s.reward for s in steps] == [0.0] * 8 + [1.0]
    assert [s.terminated for s in steps] == [False] * 8 + [True]
    assert not any(s.truncated for s in steps)
    np.testing.assert_array_equal(steps[4].action, [0, 0, steps[3].action[2]])
    assert episode.task == "put the carrot on the plate"
    assert episode.final_observation.stamp_ns == START + 9 * PERIOD
    facts = episode.metadata
    assert (facts["robot"], facts["mode"], facts["reason"]) == ("small", "guided", "success")
    assert (facts["takeovers"], facts["holds"], facts["rejected"], facts["episode_id"]) == (1, 1, 0, 7)
    assert facts["versions"]["policy"] == ["base-1"] and facts["versions"]["critic"] == ["calql-2"]
    assert [p["chunk_id"] for p in facts["plans"]] == [0, 1, 2]
    assert facts["observation_age_ns"] == [PERIOD // 100] * 9


def test_requests_for_help_are_kept_with_the_episode() -> None:
    episode = make_episode(1, "PPPPPP")
    stamp = SimpleNamespace(sec=START // 10**9, nanosec=3 * PERIOD)
    wanted = SimpleNamespace(header=SimpleNamespace(stamp=stamp), episode_id=7, step=3, reason="value low",
                             value=-12.5, progress=math.nan)  # fmt: skip
    messages = [*episode_messages(ROBOT, episode, 7), Outgoing("help", wanted, START + 3 * PERIOD)]
    (found,) = feed(arrivals(sorted(messages, key=lambda entry: entry.stamp)))
    assert isinstance(found, Episode), found
    facts = {"step": 3, "reason": "value low", "value": -12.5, "progress": None}
    assert found.metadata["help"] == [{"stamp_ns": START + 3 * PERIOD, **facts}]
    assert assembled(episode).metadata["help"] == []


@given(sources=LETTERS, seed=st.integers(0, 99), ending=st.sampled_from(["success", "failure", "time_limit"]))
@settings(max_examples=40, deadline=None)
def test_what_was_told_in_messages_comes_back(sources: str, seed: int, ending: str) -> None:
    episode = make_episode(seed, sources, ending)
    assert_same_episode(episode, assembled(episode))


@given(sources=LETTERS, seed=st.integers(0, 2**31), late=st.integers(0, 450))
@settings(max_examples=40, deadline=None)
def test_order_of_arrival_does_not_matter(sources: str, seed: int, late: int) -> None:
    episode = make_episode(seed % 100, sources)
    messages = arrivals(
        episode_messages(ROBOT, episode, 7), np.random.default_rng(seed), late_ns=late * 1_000_000
    )
    (found,) = feed(messages)
    assert isinstance(found, Episode), found
    assert_same_episode(episode, found)


@given(jitter=st.lists(st.floats(-0.2, 0.2), min_size=6, max_size=6))
@settings(max_examples=40, deadline=None)
def test_jitter_of_the_control_period_makes_no_holds(jitter: list[float]) -> None:
    episode = make_episode(1, "PPPPPP")
    ages = [PERIOD // 4 + int(part * PERIOD) for part in jitter]
    episode.metadata["observation_age_ns"] = ages
    episode.final_observation = replace(
        episode.final_observation, stamp_ns=episode.final_observation.stamp_ns + PERIOD // 2
    )
    found = assembled(episode)
    assert [step.source for step in found.steps] == ["policy"] * 6
    assert found.metadata["observation_age_ns"] == episode.metadata["observation_age_ns"]


@pytest.mark.parametrize("ending", ["success", "failure", "time_limit", "stopped: e-stop: topic"])
def test_the_end_says_how_the_last_step_ended(ending: str) -> None:
    messages = _messages()
    end = next(e.message for e in messages if e.role == "task" and e.message.finished)
    end.reason, end.success = ending, ending == "success"
    end.truncated = ending not in ("success", "failure")
    (found,) = feed(arrivals(messages))
    assert isinstance(found, Episode)
    last = found.steps[-1]
    assert (last.success, last.terminated, last.truncated) == (
        ending == "success",
        ending in ("success", "failure"),
        ending not in ("success", "failure"),
    )
    assert last.reward == (1.0 if ending == "success" else 0.0)
    assert found.metadata["reason"] == ending
    assert all(not (s.terminated or s.truncated or s.success) for s in found.steps[:-1])


def test_a_rejected_command_is_no_step_but_counted() -> None:
    """It never appears on `command`; the arm holds for its period, and the gate's counter tells."""
    messages = _messages("PPPP")
    third = [e for e in messages if e.role == "command" and e.stamp >= START + 2 * PERIOD][0]
    messages.remove(third)
    for stamp, rejected in ((START - 5, 4), (START + 2 * PERIOD, 5), (START + 3 * PERIOD, 6)):
        messages.append(Outgoing("safety_state", _at(stamp, rejected=rejected), stamp))
    (found,) = feed(arrivals(sorted(messages, key=lambda e: e.stamp)))
    assert isinstance(found, Episode)
    assert [s.source for s in found.steps] == ["policy", "policy", "hold", "policy"]
    assert found.metadata["rejected"] == 2
    assert found.steps[0].executed_length == 2


def test_a_stop_ends_the_steps() -> None:
    messages = _messages("PPPPPP")
    stop = START + 3 * PERIOD + PERIOD // 2
    values = _at(stop, kind=2, values=[], names=[], sequence=1, source="hold", chunk_id=-1, chunk_step=0)
    messages = [e for e in messages if e.role != "command" or e.stamp < stop]
    messages.append(Outgoing("command", values, stop))
    (found,) = feed(arrivals(sorted(messages, key=lambda e: e.stamp)))
    assert isinstance(found, Episode)
    assert [s.source for s in found.steps] == ["policy"] * 4
    assert found.final_observation.stamp_ns == START + 4 * PERIOD


def test_a_hold_of_joint_positions_is_the_held_pose() -> None:
    robot = replace(ROBOT, action=ActionSpec("joint_position", ROBOT.action.names))
    messages = _messages("PPPP")
    messages = [
        e for e in messages if e.role != "command" or not START + PERIOD < e.stamp < START + 3 * PERIOD
    ]
    stamp = START + 2 * PERIOD + PERIOD // 10
    held = _at(stamp, kind=1, values=[0.5, 0.25, 0.75], names=[], sequence=1, source="hold")
    messages.append(Outgoing("command", held, stamp))
    (found,) = feed(arrivals(sorted(messages, key=lambda e: e.stamp)), EpisodeAssembler(robot))
    assert isinstance(found, Episode)
    assert [s.source for s in found.steps] == ["policy", "hold", "hold", "policy"]
    np.testing.assert_array_equal(found.steps[1].action, found.steps[0].action)
    np.testing.assert_array_equal(found.steps[2].action, np.float32([0.5, 0.25, 0.75]))


@pytest.mark.parametrize("role", ["camera/front", "camera/wrist", "joints", "pose", "environment_state"])
def test_a_missing_source_drops_the_episode_and_is_named(role: str) -> None:
    text = _dropped(feed(_without(_messages(), lambda e: e.role == role)))
    assert text.startswith("episode 7 dropped: observation: ") and role in text


@pytest.mark.parametrize("role", ["camera/front", "camera/wrist", "joints", "pose"])
def test_a_source_that_falls_silent_drops_the_episode(role: str) -> None:
    messages = _without(
        _messages("P" * 12), lambda e: e.role == role and START + 2 * PERIOD < e.stamp < START + 10 * PERIOD
    )
    text = _dropped(feed(messages))
    assert text.startswith("episode 7 dropped: observation: ") and role in text


def test_a_short_gap_of_a_camera_repeats_what_was_seen_last() -> None:
    messages = _without(
        _messages("PPPP"), lambda e: e.role.startswith("camera") and e.stamp == START + PERIOD
    )
    (found,) = feed(messages)
    assert isinstance(found, Episode)
    assert [s.observation.stamp_ns - START for s in found.steps] == [0, 0, 2 * PERIOD, 3 * PERIOD]


def test_no_observation_after_the_last_action_drops_the_episode() -> None:
    messages = _without(_messages(), lambda e: e.role == "camera/front" and e.stamp > START + 2 * PERIOD)
    later = START + 20 * PERIOD
    messages.append((Outgoing("safety_state", _at(later, rejected=0), later), later))
    assert "no observation after the last action" in _dropped(feed(messages))


def test_a_frozen_camera_drops_the_episode() -> None:
    messages = _messages("P" * 20)
    first = next(e for e in messages if e.role == "camera/front")
    for entry in messages:
        if entry.role == "camera/front":
            entry.message.data = first.message.data
        elif entry.role == "joints":  # the state tells only j1
            entry.message.position[1] = (entry.stamp - START) / 1e9
    assert "camera front shows the same picture" in _dropped(feed(arrivals(messages)))


def test_a_plan_that_never_arrived_drops_the_episode() -> None:
    messages = _messages("PPPP")
    found = feed(_without(messages, lambda e: e.role == "chunk" and e.message.chunk_id == 1))
    assert "belongs to chunk 1, which was never received" in _dropped(found)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("names", ["a", "b", "c"], "names: expected"),
        ("values", [0.0, 1.0], "values: expected 3 numbers, found 2"),
        ("source", "ghost", "source: expected policy or human"),
    ],
)
def test_a_command_of_another_robot_drops_the_episode(field: str, value: Any, text: str) -> None:
    messages = _messages()
    command = [e for e in messages if e.role == "command"][-1].message
    setattr(command, field, value)
    assert text in _dropped(feed(arrivals(messages)))


def test_a_picture_in_another_encoding_drops_the_episode() -> None:
    messages = _messages()
    next(e for e in messages if e.role == "camera/front").message.encoding = "mono8"
    assert "camera front: encoding" in _dropped(feed(arrivals(messages)))


def test_an_episode_without_commands_is_dropped() -> None:
    found = feed(_without(_messages(), lambda e: e.role == "command" and e.stamp > START))
    assert "no command passed the safety gate" in _dropped(found)


def test_a_command_that_arrives_too_late_drops_the_episode() -> None:
    messages = arrivals(_messages("P" * 12))
    late = next(i for i, (e, _) in enumerate(messages) if e.role == "command" and e.stamp > START + PERIOD)
    entry, at = messages[late]
    messages[late] = (entry, at + 8 * PERIOD)
    text = _dropped(feed(sorted(messages, key=lambda pair: pair[1])))
    assert "after its stamp" in text or "before the last one's" in text


def test_a_clock_set_back_drops_the_episode() -> None:
    messages = []
    for entry in _messages("P" * 12):
        back = 4 * PERIOD if entry.stamp > START + 6 * PERIOD else 0
        header = _at(entry.stamp - back).header
        if entry.role != "environment_state":
            entry.message.header = header
        messages.append(Outgoing(entry.role, entry.message, entry.stamp - back))
    found = [(entry, entry.stamp) for entry in messages]
    assert "before the last one's" in _dropped(feed(found))


def test_what_is_under_way_at_the_end_is_dropped() -> None:
    assembler = EpisodeAssembler(ROBOT)
    messages = [e for e in _messages()[:-1] if e.role != "task" or not e.message.finished]
    assert not feed(arrivals(messages), assembler)
    assert assembler.recording
    assert "the recording ended before the episode did" in _dropped(list(assembler.close()))
    assert not assembler.recording


def test_an_episode_whose_end_was_told_is_finished_at_the_end() -> None:
    assembler, episode = EpisodeAssembler(ROBOT), make_episode(1, "PPHH-P")
    assert not feed(arrivals(episode_messages(ROBOT, episode, 7)[:-1]), assembler)
    (found,) = assembler.close()
    assert isinstance(found, Episode)
    assert_same_episode(found, episode)
    late = [e for e in _messages()[:-1] if not (e.role == "pose" and e.stamp > START + 2 * PERIOD)]
    assert not feed(arrivals(late), assembler := EpisodeAssembler(ROBOT))
    assert "no observation after the last action" in _dropped(list(assembler.close()))


def test_an_episode_that_was_already_running_is_dropped() -> None:
    messages = arrivals(_messages("P" * 12))
    late = [(e, at if e.role != "task" else at + 7 * PERIOD) for e, at in messages]
    text = _dropped(feed(sorted(late, key=lambda pair: pair[1])))
    assert "0.7 s old when the recording began" in text


def test_an_episode_after_another_and_one_whose_end_was_lost() -> None:
    first = episode_messages(ROBOT, make_episode(1, "PPP"), 1)[:-1]
    second_episode = make_episode(2, "PPHP", start=START + 40 * PERIOD)
    second = episode_messages(ROBOT, second_episode, 2)
    one, two = feed(arrivals(first + second))
    assert isinstance(one, Episode) and isinstance(two, Episode)
    assert_same_episode(two, second_episode)
    lost = [e for e in first if not (e.role == "task" and e.message.finished)]
    second = episode_messages(ROBOT, make_episode(2, "PPHP", start=START + 4 * PERIOD), 2)
    one, two = feed(arrivals(lost + second))
    assert isinstance(one, DataError) and "episode 2 began before its end was told" in str(one)
    assert isinstance(two, Episode)


def test_a_failed_episode_does_not_spoil_the_next() -> None:
    first = [e for e in episode_messages(ROBOT, make_episode(1, "PPP"), 1) if e.role != "chunk"]
    second = make_episode(2, "PPHP", start=START + 40 * PERIOD)
    one, two = feed(arrivals(first + episode_messages(ROBOT, second, 2)))
    assert isinstance(one, DataError) and isinstance(two, Episode)
    assert_same_episode(two, second)


def test_commands_outside_an_episode_are_no_steps() -> None:
    messages = [e for e in _messages("PPPP") if e.role != "task"]
    assert feed(arrivals(messages)) == []
