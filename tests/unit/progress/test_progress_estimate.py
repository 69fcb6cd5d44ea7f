"""Estimates: un-shuffled right, asked again, combined by the median, missing where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.errors import ConfigError
from valueguide.progress.cache import AnswerCache
from valueguide.progress.estimate import AskSettings, GvlEstimator, TokenProbability
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Request, RequestFailed, Sampling
from valueguide.testing.fake_progress import (
    FakeProgressBackend,
    asked_pictures,
    brightness_clip,
    written,
)

VALUES = [3, 10, 35, 20, 70, 100]
CLIP = brightness_clip(VALUES)


@pytest.mark.parametrize("answer", ["json", "lines"])
def test_values_come_back_in_the_order_of_time(answer: str) -> None:
    backend = FakeProgressBackend()
    found = GvlEstimator(backend, AskSettings(wording=Wording(answer))).estimate(CLIP)  # type: ignore[arg-type]
    assert np.isnan(found.values[0]) and found.values[1:] * 100 == pytest.approx(VALUES[1:])
    assert found.values.dtype == np.float32 and found.positions.tolist() == [0, 10, 20, 30, 40, 50]
    assert (found.status, found.parse_rate, found.final) == ("ok", 1.0, 1.0)
    assert found.voc == pytest.approx(0.9)  # one swap of neighbours in five: 1 - 6*2/(5*24)
    assert np.all(found.spread[1:] == 0) and np.isnan(found.spread[0])
    assert [r.seed for r in backend.requests] == [0, 1, 2]
    assert len({tuple(r.order) for r in backend.requests}) > 1


def test_several_shuffles_are_combined_by_the_median() -> None:
    def off(number: int, request: Request) -> str:
        right = [float(p.flat[0]) for p in asked_pictures(request.prompt)]
        return written([min(100.0, v + (0, 5, 50)[number]) for v in right], request.prompt.answer)

    found = GvlEstimator(FakeProgressBackend(off), AskSettings()).estimate(CLIP)
    assert found.values[1:] * 100 == pytest.approx([15, 40, 25, 75, 100])
    assert found.spread[1:] * 100 == pytest.approx([50, 50, 50, 30, 0])


def test_a_refused_answer_is_asked_for_again_with_the_reason() -> None:
    backend = FakeProgressBackend(lambda n, r: "no idea" if n == 0 else None)
    found = GvlEstimator(backend, AskSettings(shuffles=1)).estimate(CLIP)
    assert found.status == "ok" and found.parse_rate == 1.0
    first, again = backend.requests
    assert (first.attempt, again.attempt) == (0, 1) and np.array_equal(first.order, again.order)
    assert again.prompt.parts[:-1] == first.prompt.parts and "no JSON" in str(again.prompt.parts[-1])
    assert found.shuffles[0].reasons == ("no JSON",) and len(found.shuffles[0].replies) == 2


def test_answers_that_stay_unclear_leave_nothing() -> None:
    partly = written([10.0, 20.0, 30.0], "json")  # three of five
    backend = FakeProgressBackend(lambda n, r: partly)
    found = GvlEstimator(backend, AskSettings(shuffles=2, reasks=3)).estimate(CLIP)
    assert found.status == "malformed" and found.voc is None and found.final is None
    assert found.parse_rate == 0.0 and np.all(np.isnan(found.values))
    assert len(backend.requests) == 2 * 4


def test_one_good_shuffle_of_three_is_said_to_be_partial() -> None:
    backend = FakeProgressBackend(lambda n, r: None if r.seed == 1 else "?")
    found = GvlEstimator(backend, AskSettings(reasks=0)).estimate(CLIP)
    assert found.status == "partial" and found.parse_rate == pytest.approx(1 / 3)
    assert found.values[1:] * 100 == pytest.approx(VALUES[1:])
    assert np.all(np.isnan(found.spread))


def test_constant_answers_have_no_voc() -> None:
    found = GvlEstimator(FakeProgressBackend(), AskSettings()).estimate(brightness_clip([0, 50, 50, 50]))
    assert found.voc is None and found.status == "ok" and found.final == 0.5


def test_a_request_without_an_answer_is_not_a_malformed_answer() -> None:
    def down(number: int, request: Request) -> None:
        if request.seed == 0:
            raise RequestFailed("server is down")

    backend = FakeProgressBackend(down)
    found = GvlEstimator(backend, AskSettings(shuffles=2)).estimate(CLIP)
    assert found.status == "failed" and found.parse_rate == 1.0
    assert found.shuffles[0].reasons == ("server is down",)
    assert [r.seed for r in backend.requests] == [0, 1]  # the backend has retried already
    nothing = GvlEstimator(FakeProgressBackend(down), AskSettings(shuffles=1)).estimate(CLIP)
    assert nothing.parse_rate is None and nothing.voc is None


def test_token_probability_is_not_stretched() -> None:
    backend = FakeProgressBackend()
    found = TokenProbability(backend).estimate(brightness_clip([10, 20, 40]))
    assert np.isnan(found.values[0]) and found.values[1:] == pytest.approx([0.2, 0.4])
    assert found.log_probability is not None
    assert found.log_probability[1:] == pytest.approx(np.log([0.2, 0.4]), rel=1e-5)
    assert found.voc == 1.0 and [len(r.prompt.pictures) for r in backend.requests] == [2, 3]


def test_a_prefix_that_failed_is_missing() -> None:
    def down(number: int, request: Request) -> None:
        if number == 1:
            raise RequestFailed("out of memory")

    found = TokenProbability(FakeProgressBackend(down)).estimate(brightness_clip([10, 20, 40, 60]))
    assert np.isnan(found.values).tolist() == [True, False, True, False] and found.status == "failed"


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"shuffles": 0}, {"seed": -1}, {"reasks": -1}):
        with pytest.raises(ConfigError):
            AskSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature"):
        Sampling(temperature=-1)
    backend = FakeProgressBackend()
    backend.answers = ("json",)
    with pytest.raises(ConfigError, match="token"):
        TokenProbability(backend)
    with pytest.raises(ConfigError, match="lines"):
        GvlEstimator(backend, AskSettings(wording=Wording("lines")), cache=AnswerCache(None))
