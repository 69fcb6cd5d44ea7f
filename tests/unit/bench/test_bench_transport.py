"""`bench transport`: every baseline answers with the same content, figures follow, all ends."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from valueguide.bench import transport
from valueguide.bench import transport_baselines as baselines
from valueguide.cli.main import main
from valueguide.errors import EnvironmentSetupError


def _content() -> baselines.Content:
    chunks = np.arange(2 * 16 * 7, dtype=np.float32).reshape(2, 16, 7)
    return baselines.Content(baselines.observation(), chunks, (b"asked",), (b"there", b"back"))


def test_websocket_gives_back_the_same_numbers() -> None:
    content = _content()
    with baselines.websocket_msgpack(content) as trip:
        np.testing.assert_array_equal(trip(), content.chunks)
        np.testing.assert_array_equal(trip(), content.chunks)


@pytest.mark.slow
def test_lerobots_own_server_gives_back_the_same_numbers() -> None:
    pytest.importorskip("grpc")
    content = _content()
    with baselines.lerobot_grpc(content) as trip:
        for _ in range(3):  # the same state again is not left out as "similar"
            np.testing.assert_array_equal(trip(), content.chunks)


def test_raw_zmq_carries_the_very_frames_of_our_messages() -> None:
    content = transport._content(transport._request(0, 2))
    with baselines.raw_zmq(content) as trip:
        assert [bytes(frame) for frame in trip()] == [bytes(frame) for frame in content.reply]
    pictures = [image.tobytes() for image in content.observation.images.values()]
    assert [bytes(frame) for frame in content.request[-2:]] == pictures


def test_our_messages_without_a_link_are_unpacked_and_checked() -> None:
    content = transport._content(transport._request(0, 2))
    with baselines.messages_zmq(content) as trip:
        for _ in range(2):
            reply = trip()
            np.testing.assert_array_equal(reply.candidates.actions, content.chunks)
    assert multiprocessing.active_children() == []


def test_round_trips_are_compared_pair_by_pair_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = {"ours": [1.0, 8.0, 3.0], "raw_zmq": [1.0, 2.0, 1.0], "websocket_msgpack": [2.0, 4.0, 1.0]}
    real, seen = transport.turns, []

    def turns(functions: dict, repeats: int, warm_up: int) -> dict:
        seen.append({name: len(v) for name, v in real(functions, repeats, warm_up).items()})
        return {name: np.array(values) for name, values in taken.items()}

    monkeypatch.setattr(transport, "turns", turns)
    out = transport.round_trip(2, 3, ("raw_zmq", "websocket_msgpack"), warm_up=1)
    assert seen == [{"ours": 3, "raw_zmq": 3, "websocket_msgpack": 3}]
    assert out["times_raw"]["ours"]["p50"] == 3.0  # of 1, 4, 3; of the medians it would be 3 / 1 = 3 as well
    assert out["ours_times"]["websocket_msgpack"]["p50"] == 2.0  # of 0.5, 2, 3; of the medians 1.5
    assert out["request_bytes"] > 2 * 224 * 224 * 3 and out["reply_bytes"] > 3 * 16 * 7 * 4
    assert multiprocessing.active_children() == []


def test_a_baseline_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "grpc", None)
    out = transport.round_trip(1, 2, ("lerobot_grpc",), warm_up=0)
    assert list(out["seconds"]) == ["ours"] and "grpc" in out["missing"]["lerobot_grpc"]


def test_robots_at_once_share_passes() -> None:
    # One pass runs while the others gather: three robots in 40 + 44 ms instead of 120. Two never meet.
    out = transport.batching_gain(3, seconds=0.6, k=1)
    assert out["gain"] > 1.1
    assert out["shared"]["p50"] >= transport.PASS_S
    assert multiprocessing.active_children() == []


def _dies(told: object) -> None:
    os._exit(3)


def test_a_server_that_dies_at_its_start_is_said() -> None:
    with pytest.raises(EnvironmentSetupError, match="_dies ended"), baselines.process(_dies):
        pass
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_command_measures_trips_robots_and_shared_passes(tmp_path: Path) -> None:
    out = tmp_path / "transport.json"
    command = ["bench", "transport", "--quick", "--repeats", "1", "--device", "cpu", "--json", str(out)]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert not stop.value.code
    found = json.loads(out.read_text())
    assert not found["round_trip"]["missing"] and found["round_trip"]["repeats"] == 30
    assert set(found["round_trip"]["ours_times"]) == {
        "raw_zmq",
        "messages_zmq",
        "websocket_msgpack",
        "lerobot_grpc",
    }
    assert set(found["throughput"]) == {"robots=1", "robots=3"}
    assert found["batching_paced"]["robots=3"]["gain"] > 1.2
