"""`valueguide bench progress`: requests and tokens by hand, and ratios that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valueguide.bench.progress import ProgressBench, measure
from valueguide.cli.main import main
from valueguide.testing.fake_progress import FakeProgressBackend


def test_requests_and_tokens_are_those_of_the_way(tmp_path: Path) -> None:
    """Two clips of four frames, five variants, two shuffles. The fake takes 10 tokens a picture, 5 a frame.

    One call: blank clips are the same in both, so 5 and 4 variants of 2 requests; each shows 4 pictures and
    asks about 3. One call a frame: of each variant 3, but repeated pictures make one of three (and blank ones
    none in the second clip), and "reversed" asks what "real" did; two shuffles of one frame are not the same.
    """
    backend = FakeProgressBackend()
    found = measure(backend, ProgressBench(clips=2, frames=4, pixels=8), tmp_path)
    ways = found["ways"]
    assert ways["one_call"]["requests_per_episode"] == 9.0
    assert ways["one_call"]["remembered_per_episode"] == 1.0
    assert ways["one_call"]["input_tokens_per_episode"] == 9 * 4 * 10
    assert ways["one_call"]["output_tokens_per_episode"] == 9 * 3 * 5
    uncached = ways["one_call_per_frame_uncached"]
    assert uncached["requests_per_episode"] == 5 * 3 * 2 and uncached["remembered_per_episode"] == 0
    assert uncached["tokens_per_episode"] == 30 * (2 * 10 + 5)
    # Real 3, first frame 1, blank 1 or 0, wrong instruction 3, reversed 0, each with two seeds.
    assert ways["one_call_per_frame"]["requests_per_episode"] == 2 * (3 + 1 + 0.5 + 3 + 0)
    assert found["again"]["requests_per_episode"] == 0 and found["again"]["tokens_per_episode"] == 0
    assert (
        ways["one_call"]["usable"] >= 0.2
    )  # blank pictures; the noise is brighter than 100 % here and there
    for way, ratios in found["ratios"].items():
        for name, ratio in ratios.items():
            assert ratio == pytest.approx(ways[way][name] / ways["one_call"][name])
    # What is asked is the same: each way has all frames of all clips.
    assert found["ratios"]["one_call_per_frame_uncached"]["tokens_per_episode"] == pytest.approx(750 / 495)


def _bench(tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    target = tmp_path / "progress.json"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "progress", "--device", "cpu", "--json", str(target), *options])
    return int(stop.value.code or 0), json.loads(target.read_text()) if target.exists() else {}


def test_a_real_model_is_measured(tmp_path: Path) -> None:
    status, found = _bench(tmp_path, "--clips", "1", "--clip-frames", "3", "--shuffles", "1")
    assert status == 0 and found["settings"]["model"]["kind"] == "transformers"
    assert found["ways"]["one_call"]["requests_per_episode"] == 5
    assert found["ways"]["one_call"]["output_tokens_per_episode"] == 5 * 2 * 10
    assert found["ratios"]["one_call_per_frame_uncached"]["tokens_per_episode"] > 1
    assert found["again"]["seconds_per_episode"] < found["ways"]["one_call"]["seconds_per_episode"]


@pytest.mark.parametrize("option", ["--clips", "--clip-frames", "--shuffles"])
def test_counts_that_are_too_small_are_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(tmp_path, option, "0")[0] == 2
    assert option in capsys.readouterr().err
