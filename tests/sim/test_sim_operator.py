"""The scripted operator: when it takes over, how late, how long, within which budget, and that it helps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sim.dangers import Dangers
from sim.env import TabletopEnv
from sim.experts import Expert, Flaws
from sim.operator import OperatorSettings, ScriptedOperator
from sim.tasks import TASKS
from valueguide.errors import ConfigError

Run = dict[str, Any]
_STAY = np.array([0, 0, 0, 0, 1], np.float32)


def _episode(
    env: TabletopEnv,
    operator: ScriptedOperator,
    seed: int,
    policy: Callable[[TabletopEnv], Callable[[], Any]],
) -> Run:
    """An episode under a policy: who commanded each step, what was sent, how it ended, and the facts."""
    _, info = env.reset(seed=seed)
    operator.begin(env, seed)
    act, human, actions = policy(env), [], []
    while True:
        human.append(operator.wants_control(info, len(human)))
        action = operator.action() if human[-1] else np.asarray(act(), np.float32)
        actions.append(action)
        *_, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    operator.release()
    return {"human": human, "actions": actions, "success": info["is_success"], **operator.facts()}


def _flawed(**flaws: Any) -> Callable[[TabletopEnv], Callable[[], Any]]:
    return lambda env: Expert(env.world, env.task, Flaws(**flaws), 0).action


def _still(env: TabletopEnv) -> Callable[[], Any]:
    return lambda: _STAY


@pytest.mark.parametrize("task", TASKS)
def test_a_good_policy_is_left_alone_and_a_lame_one_is_rescued(task: str) -> None:
    env, operator = TabletopEnv(task, "state"), ScriptedOperator()
    good = _episode(env, operator, 1, _flawed())
    assert good["success"] and not any(good["human"]) and good["interventions"] == []
    lame = _episode(env, operator, 1, _still)
    assert lame["success"] and lame["interventions"][0]["reason"] == "stuck"


@pytest.mark.parametrize(
    ("task", "flaws", "reason"),
    [
        ("carrot_on_plate", {"grasp_height": 0.05, "retry": False}, "empty"),
        ("can_near_plate", {"grasp_offset": (0.032, 0.0)}, "misaligned"),
        ("can_near_plate", {"grasp_offset": (0.0, 0.028)}, "force"),
        ("can_near_plate", {"release_at": 0.5}, "dropped"),
        ("can_near_plate", {"place_offset": (0.0, 0.09)}, "misplaced"),
        ("carrot_on_plate", {"wrong_object": "can"}, "wrong_object"),
        ("open_drawer", {"short": 0.3}, "stuck"),
    ],
)
def test_it_sees_what_goes_wrong(task: str, flaws: dict[str, Any], reason: str) -> None:
    env, operator = TabletopEnv(task, "state"), ScriptedOperator(OperatorSettings(hand_back="never"))
    seed = next(s for s in range(1, 20) if _present(env, s, flaws.get("wrong_object")))
    run = _episode(env, operator, seed, _flawed(**flaws))
    assert run["interventions"][0]["reason"] == reason
    assert run["success"]


def _present(env: TabletopEnv, seed: int, name: str | None) -> bool:
    env.reset(seed=seed)
    return name is None or name in env.world.present


@pytest.mark.parametrize("reaction", [0, 3, 7])
def test_the_takeover_comes_a_reaction_after_the_first_sign(reaction: int) -> None:
    env = TabletopEnv("press_button", "state")
    operator = ScriptedOperator(OperatorSettings(reaction=reaction, patience=5))
    run = _episode(env, operator, 2, _still)
    # Progress is first seen at step 0; five steps later nothing has come of it.
    assert run["human"].index(True) == 5 + reaction == run["interventions"][0]["step"]


def test_a_danger_that_passes_within_the_reaction_is_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = ["", "stuck", "stuck", "", "stuck", "stuck", "stuck", "stuck"]
    monkeypatch.setattr(Dangers, "look", lambda self, step: signs[step])
    env, operator = TabletopEnv("press_button", "state"), ScriptedOperator(OperatorSettings(reaction=3))
    env.reset(seed=0)
    operator.begin(env, 0)
    assert [operator.wants_control({}, step) for step in range(8)] == [False] * 7 + [True]


def test_it_hands_back_with_the_object_lifted_and_the_second_time_not() -> None:
    env, operator = TabletopEnv("carrot_on_plate", "state"), ScriptedOperator()
    run = _episode(env, operator, 1, _still)
    first, second = run["interventions"]
    lifted = first["handed_back"]
    assert run["human"][first["step"] : lifted] == [True] * (lifted - first["step"])
    assert run["human"][lifted] is False
    assert "handed_back" not in second and all(run["human"][second["step"] :]) and run["success"]


def test_never_handing_back_drives_to_the_end() -> None:
    env = TabletopEnv("carrot_on_plate", "state")
    run = _episode(env, ScriptedOperator(OperatorSettings(hand_back="never")), 1, _still)
    start = run["human"].index(True)
    assert all(run["human"][start:]) and run["success"] and len(run["interventions"]) == 1


def test_what_the_hand_had_already_is_driven_to_the_end() -> None:
    env, operator = TabletopEnv("can_near_plate", "state"), ScriptedOperator()
    run = _episode(env, operator, 1, _flawed(place_offset=(0.0, 0.09)))
    assert [list(entry) for entry in run["interventions"]] == [["reason", "step"]] and run["success"]


def test_an_episodes_budget_holds() -> None:
    env = TabletopEnv("carrot_on_plate", "state")
    nobody = _episode(env, ScriptedOperator(OperatorSettings(max_takeovers=0)), 1, _still)
    assert not any(nobody["human"]) and not nobody["success"]
    once = _episode(env, ScriptedOperator(OperatorSettings(max_takeovers=1)), 1, _still)
    assert len(once["interventions"]) == 1 and not once["success"]
    short = _episode(env, ScriptedOperator(OperatorSettings(max_steps=9)), 1, _still)
    assert sum(short["human"]) == 9 and short["interventions"][0]["handed_back"] > 0


def test_a_runs_budget_holds_over_episodes() -> None:
    env = TabletopEnv("press_button", "state")
    operator = ScriptedOperator(OperatorSettings(run_takeovers=3, hand_back="never"))
    runs = [_episode(env, operator, seed, _still) for seed in range(5)]
    assert [len(run["interventions"]) for run in runs] == [1, 1, 1, 0, 0]
    assert operator.run_takeovers == 3
    limited = ScriptedOperator(OperatorSettings(run_steps=12))
    assert sum(sum(_episode(env, limited, seed, _still)["human"]) for seed in range(3)) == 12
    assert limited.run_steps == 12


def test_an_episode_is_the_same_whatever_came_before() -> None:
    env = TabletopEnv("stack_cubes", "state")
    fresh = _episode(env, ScriptedOperator(), 3, _still)
    used = ScriptedOperator()
    _episode(env, used, 4, _still)
    again = _episode(env, used, 3, _still)
    assert fresh["human"] == again["human"] and fresh["interventions"] == again["interventions"]
    np.testing.assert_array_equal(fresh["actions"], again["actions"])


def test_it_leaves_too_little_time_to_nobody() -> None:
    env = TabletopEnv("carrot_on_plate", "state")

    def dither(env: TabletopEnv) -> Callable[[], Any]:
        steps = iter(range(1000))
        return lambda: np.array([0, 0, 0.01 * (-1) ** (next(steps) // 5), 0, 1], np.float32)

    run = _episode(env, ScriptedOperator(OperatorSettings(patience=200)), 2, dither)
    assert [entry["reason"] for entry in run["interventions"]] == ["late"] and run["success"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"hand_back": "soon"}, "hand_back: expected subgoal or never, found 'soon'"),
        ({"reaction": -1}, "reaction: expected 0 or more, found -1"),
        ({"patience": 0}, "patience: expected 1 or more"),
        ({"run_steps": -5}, "run_steps: expected 0 or more"),
        ({"tremor": float("nan")}, "tremor"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        OperatorSettings(**settings)


def test_only_the_tabletop_can_be_watched() -> None:
    with pytest.raises(ConfigError, match="environment: expected the tabletop, found SimpleNamespace"):
        ScriptedOperator().begin(SimpleNamespace(unwrapped=SimpleNamespace()), 0)
