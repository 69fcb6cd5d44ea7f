"""Agreement of curves: by hand, against a direct computation, and what missing frames do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from valueguide.errors import ConfigError, DataError
from valueguide.evaluation.agreement import Curves, agreement
from valueguide.evaluation.starc import Transitions, principal_features, starc_distance

NAN = float("nan")


def _curves(
    values: Mapping[str, Sequence[float]], task: str = "push", number: int = 0, states: int = 0
) -> Curves:
    n = len(next(iter(values.values())))
    rng = np.random.default_rng(number)
    return Curves(
        task,
        number,
        True,
        4 * np.arange(n),
        {name: np.array(v, float) for name, v in values.items()},
        rng.normal(size=(n, states or 2)),
    )


def test_rank_correlations_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15) = 0.8; reversed: -1; a constant is undefined."""
    found = agreement(
        [
            _curves({"a": [0, 1, 2, 3], "b": [10, 30, 20, 40]}),
            _curves({"a": [0, 1, 2, 3], "b": [4, 3, 2, 1]}, number=1),
            _curves({"a": [0, 1, 2, 3], "b": [5, 5, 5, 5]}, number=2),
            _curves({"a": [0, 1, 2], "b": [0, 1, 2]}, "pull", 3),
        ]
    )
    within = found["a ~ b"]["within"]
    assert within["tasks"]["push"]["value"] == pytest.approx(-0.1)
    assert within["tasks"]["push"]["episodes"] == 2 and within["tasks"]["pull"]["ci95"] is None
    assert within["value"] == pytest.approx((-0.1 + 1.0) / 2)
    low, high = within["tasks"]["push"]["ci95"]
    assert (low, high) == (pytest.approx(-1.0), pytest.approx(0.8))


def test_pooled_sees_the_level_of_an_episode_within_does_not() -> None:
    """Along each episode all agree; but b gives the failure (which gets to 0.2) higher values."""
    found = agreement(
        [
            _curves({"a": [0.5, 0.8, 1.0], "b": [0.0, 0.1, 0.2]}),
            _curves({"a": [0.0, 0.1, 0.2], "b": [0.5, 0.8, 1.0]}, number=1),
        ]
    )["a ~ b"]
    assert found["within"]["value"] == 1.0
    # Ranks 4 5 6 1 2 3 against 1 2 3 4 5 6: 1 - 6 * 6 * 9 / (6 * 35).
    assert found["pooled"]["value"] == pytest.approx(1 - 324 / 210)


def test_frames_that_one_lacks_do_not_count() -> None:
    found = agreement([_curves({"a": [NAN, 1, 2, 3, 4], "b": [9, 1, NAN, 3, 4]})])["a ~ b"]
    assert found["within"]["value"] == 1.0
    nothing = agreement([_curves({"a": [NAN, 1], "b": [1, NAN]})])["a ~ b"]
    assert [nothing[name]["value"] for name in ("within", "pooled", "starc")] == [None] * 3


def test_starc_is_that_of_the_transitions_between_known_frames() -> None:
    rng = np.random.default_rng(1)
    episodes = [
        _curves(dict(zip("ab", rng.normal(size=(2, 9)).tolist(), strict=True)), number=i, states=3)
        for i in range(4)
    ]
    episodes[2].values["a"][4] = NAN
    found = agreement(episodes, gamma=0.9)["a ~ b"]["starc"]
    kept = [np.flatnonzero(~np.isnan(one.values["a"])) for one in episodes]
    features = principal_features(
        np.concatenate([one.states[k] for one, k in zip(episodes, kept, strict=True)]), 16
    )
    before, after, discount, a, b = [], [], [], [], []
    first = 0
    for one, k in zip(episodes, kept, strict=True):
        before += range(first, first + len(k) - 1)
        after += range(first + 1, first + len(k))
        discount += [0.9 ** (4 * (j - i)) for i, j in zip(k, k[1:], strict=False)]
        a += one.values["a"][k][1:].tolist()
        b += one.values["b"][k][1:].tolist()
        first += len(k)
    moves = Transitions(features[before], features[after], np.array(discount))
    assert found["value"] == pytest.approx(starc_distance(np.array(a), np.array(b), moves))
    assert 0 < found["value"] < 1 and found["ci95"][0] <= found["ci95"][1] <= 1


def test_the_same_curve_in_other_units_agrees_fully() -> None:
    rng = np.random.default_rng(2)
    episodes = [
        _curves({"a": (values := rng.normal(size=8)).tolist(), "b": (5 + 3 * values).tolist()}, number=i)
        for i in range(5)
    ]
    found = agreement(episodes)["a ~ b"]
    assert found["starc"]["value"] < 1e-6 and found["pooled"]["value"] == pytest.approx(1.0)


def test_input_that_makes_no_sense_is_refused() -> None:
    one = _curves({"a": [0, 1], "b": [0, 1]})
    with pytest.raises(ConfigError, match="gamma"):
        agreement([one], gamma=1.0)
    for wrong in ([], [_curves({"a": [0, 1]})], [one, _curves({"a": [0, 1], "c": [0, 1]})]):
        with pytest.raises(DataError, match="curves"):
            agreement(wrong)
    with pytest.raises(DataError, match="positions"):
        Curves("t", 0, True, np.array([1, 0]), {"a": np.zeros(2)}, np.zeros((2, 1)))
