"""The report: complete, self-contained, safe against names, and its pictures and films are right."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from valueguide.drawing import draw_candidates, draw_scores, score_colors
from valueguide.evaluation import plots
from valueguide.evaluation.report import Video, write_report
from valueguide.evaluation.results import build_results
from valueguide.evaluation.video import (
    encode_mp4,
    side_by_side,
)

_VOID = {"meta", "br", "path", "rect", "circle", "polygon", "polyline"}


def _rows(guided: int = 9, base: int = 3) -> list[dict[str, Any]]:
    rows = []
    for arm, wins in (("base", base), ("guided", guided), ("guided@4", guided - 1)):
        for episode in range(12):
            rows.append({"arm": arm, "task": "pick_<can>", "episode": episode, "success": episode < wins,
                         "any_time_success": episode < wins, "steps": 10, "policy_s": [0.02],
                         "critic_s": [0.004], "total_s": [0.024], "reasons": {"argmax": 1}})  # fmt: skip
    return rows


def _write(tmp_path: Path, rows: list[dict[str, Any]], videos: tuple[Video, ...] = ()) -> str:
    settings = {"suite": "wxai", "k": 16, "episodes": 12, "command": "valueguide eval --out a<b"}
    write_report(tmp_path / "report.html", build_results(settings, rows), videos)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class _Balance(HTMLParser):
    """Fails on a tag that closes another one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def test_it_holds_every_number_and_nothing_from_outside(tmp_path: Path) -> None:
    film = encode_mp4([np.zeros((16, 16, 3), np.uint8)], 10)
    text = _write(tmp_path, _rows(), (Video("pick", "saved", film),))
    assert "Guidance adds 50.0 points of success" in text
    for part in (
        "25% <span>3/12</span>",
        "75% <span>9/12</span>",
        "pick &lt;can&gt;",
        "--out a&lt;b",
        "+50.0",
        "of 12 pairs of episodes guidance saved 6 and lost 0",
    ):
        assert part in text
    assert "<can>" not in text and "<b " not in text
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script|<link', text)
    embedded = re.search(r"data:video/mp4;base64,([^\"]+)", text)
    assert embedded and base64.b64decode(embedded[1]) == film
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []


@pytest.mark.parametrize(
    ("base", "guided", "words"),
    [(3, 3, "No clear difference"), (9, 3, "Guidance costs 50.0 points"), (3, 4, "No clear difference")],
)
def test_the_headline_claims_no_more_than_the_interval_does(
    tmp_path: Path, base: int, guided: int, words: str
) -> None:
    assert words in _write(tmp_path, _rows(guided, base))


def test_one_arm_alone_makes_a_report_too(tmp_path: Path) -> None:
    text = _write(tmp_path, [r for r in _rows() if r["arm"] == "guided"])
    assert "75.0%" in text and "Paired" not in text and "<video" not in text


def test_bars_stand_where_the_rates_are() -> None:
    cell = {"rate": 0.5, "wilson95": [0.25, 0.75], "successes": 5, "n": 10}
    svg = plots.task_bars({"base": {"tasks": {"a": cell}}}, ["a"])
    # The axis is 200 pixels high, from 214 up to 14.
    assert 'y="114.0"' in svg and 'height="100.0"' in svg and "164.0V64.0" in svg
    assert "base, a: 50% (5/10), 95% 25 to 75" in svg


def test_the_sweep_is_logarithmic_and_takes_a_single_point() -> None:
    points = [{"k": k, "mean": 0.5, "wilson95": [0.4, 0.6]} for k in (1, 4, 16)]
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)"', plots.sweep(points))]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert "<circle" in plots.sweep(points[:1])


# --- pictures ----------------------------------------------------------------------------------------


def test_colours_follow_the_scores() -> None:
    colors = score_colors(np.array([3.0, -1.0, np.nan, 1.0]))
    brightness = colors.astype(int).sum(axis=1)
    assert brightness[0] > brightness[3] > brightness[1]
    assert tuple(colors[2]) == (156, 163, 175)  # grey: no score
    same = score_colors(np.array([2.0, 2.0]))
    assert (same[0] == same[1]).all()


def test_lines_are_drawn_where_the_paths_are_and_the_chosen_one_wins() -> None:
    frame = np.full((40, 40, 3), 128, np.uint8)
    across = np.array([[5, 20], [35, 20]], np.float32)
    down = np.array([[20, 5], [20, 35], [np.nan, np.nan]], np.float32)
    values = np.array([1.0, 0.0], np.float32)
    out = draw_candidates(frame, [across, down], values, chosen=1, scale=2)
    assert out.shape == (80, 80, 3) and (frame == 128).all()
    best, worst = score_colors(values).astype(int)
    smooth = 20  # lines are antialiased
    assert abs(out[40, 20] - best).max() < smooth
    assert abs(out[20, 40] - worst).max() < smooth
    assert abs(out[40, 40] - worst).max() < smooth  # the executed one lies on top, although it scores lower
    assert out[20, 34:40].max(axis=1).min() < 60  # its dark edge
    assert (out[5, 5] == 128).all()
    unscored = draw_candidates(frame, [across], None, chosen=0, scale=2)
    assert unscored[40, 20].min() > 255 - smooth
    nothing = draw_candidates(frame, [np.full((3, 2), np.nan, np.float32)], None, 0, scale=2)
    assert (nothing == 128).all()


def test_score_bars_grow_with_the_score() -> None:
    frame = np.full((60, 120, 3), 128, np.uint8)
    values = np.array([0.0, 1.0, np.nan], np.float32)
    out = draw_scores(frame, values, chosen=1)
    worst, best, _ = score_colors(values)
    heights = [int((out == color).all(axis=2).any(axis=1).sum()) for color in (worst, best)]
    assert heights[1] > heights[0] > 0
    assert (draw_scores(frame, None, 0) == 128).all()


def test_the_shorter_film_waits_with_its_verdict() -> None:
    left = [np.full((20, 200, 3), 10 * i, np.uint8) for i in range(2)]
    right = [np.full((20, 200, 3), 100 + i, np.uint8) for i in range(5)]
    frames = side_by_side(left, right, ("policy alone", "guided"), ("failure", "success"))
    assert len(frames) == 5 and len({f.shape for f in frames}) == 1
    assert frames[4][-1, 0, 0] == 10 and frames[4][-1, -1, 0] == 104

    def badge(frame: Any, color: tuple[int, int, int]) -> bool:
        return bool((frame == color).all(axis=2).any())

    red, green = (214, 62, 62), (34, 160, 90)
    assert [badge(f, red) for f in frames] == [False, True, True, True, True]
    assert [badge(f, green) for f in frames] == [False, False, False, False, True]


def test_films_are_h264_of_even_size_with_every_frame() -> None:
    frames = [np.full((33, 51, 3), value, np.uint8) for value in (0, 120, 240)]
    with av.open(io.BytesIO(encode_mp4(frames, 10))) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 50, 32)
        assert stream.average_rate == 10 and stream.codec_context.pix_fmt == "yuv420p"
        levels = [frame.to_ndarray(format="rgb24").mean() for frame in film.decode(stream)]
    np.testing.assert_allclose(levels, [0, 120, 240], atol=4)


def test_value_strips_show_every_episode_where_it_lies() -> None:
    svg = plots.value_strips(
        {"a<b": {"success": [-10.0, -30.0], "failure": [-50.0], "helped": []}}, lambda _: "#123456"
    )
    assert svg.count("<circle") == 3 == svg.count('fill="#123456"')
    xs = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', svg)]
    assert xs == [936.0, 563.0, 190.0]  # the axis runs from the lowest to the highest value
    assert svg.count('class="whisker"') == 2 and "M749.5 " in svg  # at the mean of the two successes
    assert "a&lt;b, success (2)" in svg and ">-50<" in svg and ">-30<" in svg and ">-10<" in svg
    assert plots.value_strips({"a": {"success": [1.0]}}).count("<circle") == 1
    assert "<circle" not in plots.value_strips({})


def test_bars_may_have_other_colours() -> None:
    cell = {"rate": 0.5, "n": 2, "successes": 1, "wilson95": [0.1, 0.9]}
    svg = plots.task_bars({"a": {"tasks": {"t": cell}}}, ["t"], "Changed", lambda arm: "#0a0b0c")
    assert 'fill="#0a0b0c"' in svg and 'aria-label="Changed"' in svg
