"""The endpoint backend against a real server on a real socket that misbehaves in every known way."""

from __future__ import annotations

import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from valueguide.errors import ConfigError
from valueguide.progress.cache import AnswerCache
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.http import JsonEndpoint, Patience
from valueguide.progress.openai import OpenAiBackend, read_completion
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Clip, Estimate, RequestFailed
from valueguide.testing.fake_openai_server import FakeOpenAiServer
from valueguide.testing.fake_progress import brightness_clip

VALUES = [3, 10, 35, 20, 70, 100]
CLIP = brightness_clip(VALUES)
QUICK = Patience(timeout_s=1.0, tries=4, first_wait_s=0.01, longest_wait_s=0.5)
SECRET = "sk-test-0123456789"


def _estimate(
    server: FakeOpenAiServer,
    answer: str = "json",
    patience: Patience = QUICK,
    clip: Clip = CLIP,
    **options: object,
) -> Estimate:
    backend = OpenAiBackend(server.url, "m", schema="off", patience=patience)
    settings = AskSettings(shuffles=1, wording=Wording(answer), **options)  # type: ignore[arg-type]
    return GvlEstimator(backend, settings).estimate(clip)


def _good(found: Estimate) -> bool:
    return found.status == "ok" and np.allclose(found.values[1:] * 100, VALUES[1:])


@pytest.mark.parametrize("answer", ["json", "lines"])
def test_pictures_travel_exactly_and_values_come_back(answer: str) -> None:
    with FakeOpenAiServer() as server:
        found = _estimate(server, answer)
    assert _good(found)
    reply = found.shuffles[0].replies[0]
    assert (reply.input_tokens, reply.output_tokens, reply.finish) == (100, 20, "stop")
    assert reply.seconds > 0
    body = server.bodies[0]
    assert body["model"] == "m" and body["temperature"] == 0.0 and body["max_tokens"] > 100
    assert "Authorization" not in server.headers[0] and "response_format" not in body


@pytest.mark.parametrize(
    "fault",
    ["429", "429-date", "500", "503", "cut", "truncated", "garbage", "html", "error-200", "list", "echo-key"],
)
def test_a_passing_fault_is_retried(fault: str) -> None:
    with FakeOpenAiServer([fault, fault]) as server:
        found = _estimate(server)
    assert _good(found) and len(server.bodies) == 3
    assert found.shuffles[0].reasons == () and server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_stuck_server_costs_the_timeout_and_no_more(fault: str) -> None:
    """A drip restarts a socket's own timeout with every byte; the deadline holds all the same."""
    with FakeOpenAiServer([fault], hang_s=20.0) as server:
        start = time.perf_counter()
        found = _estimate(server, patience=Patience(0.5, 2, 0.01, 0.1))
        assert time.perf_counter() - start < 3.0
    assert _good(found) and len(server.bodies) == 2


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_server_that_stays_stuck_is_told_from_one_that_talks_nonsense(fault: str) -> None:
    """What dripped in until the deadline is not read as an answer that ended."""
    with FakeOpenAiServer([fault] * 2, hang_s=20.0) as server:
        found = _estimate(server, patience=Patience(0.5, 2, 0.01, 0.1))
    assert found.status == "failed"
    assert "the last: no answer within 0.5 s" in found.shuffles[0].reasons[0]


@pytest.mark.parametrize("fault", ["429", "500", "cut", "truncated", "garbage", "error-200"])
def test_a_lasting_fault_is_a_failure_without_values(fault: str) -> None:
    with FakeOpenAiServer([fault] * 4) as server:
        found = _estimate(server)
    assert found.status == "failed" and np.all(np.isnan(found.values)) and len(server.bodies) == 4
    assert "4 tries" in found.shuffles[0].reasons[0] and found.parse_rate is None


@pytest.mark.parametrize("fault", ["length", "refusal"])
@pytest.mark.parametrize("answer", ["json", "lines"])
def test_an_answer_that_is_no_answer_is_asked_for_again(fault: str, answer: str) -> None:
    with FakeOpenAiServer([fault]) as server:
        found = _estimate(server, answer)
    assert _good(found) and len(found.shuffles[0].reasons) == 1 and len(server.bodies) == 2
    assert server.bodies[0]["seed"] != server.bodies[1]["seed"]
    with FakeOpenAiServer([fault] * 3) as server:
        found = _estimate(server, answer)
    assert found.status == "malformed" and np.all(np.isnan(found.values)) and found.parse_rate == 0.0


@pytest.mark.parametrize("answer", ["json", "lines"])
def test_frames_in_another_order_are_put_right(answer: str) -> None:
    with FakeOpenAiServer(["reordered"]) as server:
        assert _good(_estimate(server, answer))
    assert len(server.bodies) == 1


def test_tokens_that_are_not_reported_stay_unknown() -> None:
    with FakeOpenAiServer(["no-usage"]) as server:
        reply = _estimate(server).shuffles[0].replies[0]
    assert reply.input_tokens is None and reply.output_tokens is None


def test_a_wrong_request_is_not_repeated() -> None:
    with FakeOpenAiServer(["400"]) as server:
        found = _estimate(server)
    assert found.status == "failed" and len(server.bodies) == 1


@pytest.mark.parametrize("fault", ["401", "redirect"])
def test_what_no_request_gets_past_ends_the_run(fault: str) -> None:
    with FakeOpenAiServer([fault]) as server, pytest.raises(ConfigError, match="refused|redirected"):
        _estimate(server)
    assert len(server.bodies) == 1


def test_the_servers_wish_to_wait_is_heeded() -> None:
    waits: list[float] = []
    with FakeOpenAiServer(["429-long"]) as server:
        endpoint = JsonEndpoint(server.url, "", QUICK, waits.append)
        with pytest.raises(RequestFailed, match="7200"):
            endpoint.post("/chat/completions", {"messages": [{"content": "x"}]}, read_completion)
    assert waits == [] and len(server.bodies) == 1
    patient = Patience(1.0, 2, 0.01, 10_000.0)
    with FakeOpenAiServer(["429-long"]) as server:
        endpoint = JsonEndpoint(server.url, "", patient, waits.append)
        endpoint.post("/chat/completions", {"messages": [{"content": "x"}]}, read_completion)
    assert waits == [7200.0]


def test_waits_grow_and_are_bounded() -> None:
    waits: list[float] = []
    with FakeOpenAiServer(["500"] * 6) as server:
        endpoint = JsonEndpoint(server.url, "", Patience(1.0, 7, 1.0, 5.0), waits.append)
        endpoint.post("/chat/completions", {"messages": [{"content": "x"}]}, read_completion)
    for wait, longest in zip(waits, [1, 2, 4, 5, 5, 5], strict=True):
        assert longest / 2 <= wait <= longest


def test_no_server_at_all_is_a_failure() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    backend = OpenAiBackend(url, "m", schema="off", patience=QUICK)
    found = GvlEstimator(backend, AskSettings(shuffles=1)).estimate(CLIP)
    assert found.status == "failed" and "ConnectionRefused" in found.shuffles[0].reasons[0]


def test_a_wrong_path_says_so() -> None:
    with FakeOpenAiServer() as server, pytest.raises(ConfigError, match="404"):
        backend = OpenAiBackend(server.url + "/v2", "m", schema="off", patience=QUICK)
        GvlEstimator(backend, AskSettings(shuffles=1)).estimate(CLIP)


@pytest.mark.parametrize("fault", ["401", "echo-key", "400"])
def test_the_key_is_sent_and_never_shown(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("VG_TEST_KEY", SECRET)
    shown: list[str] = []
    with FakeOpenAiServer([fault] * 4) as server, caplog.at_level(logging.DEBUG):
        backend = OpenAiBackend(server.url, "m", "VG_TEST_KEY", schema="off", patience=QUICK)
        estimator = GvlEstimator(backend, AskSettings(shuffles=1), cache=AnswerCache(tmp_path))
        try:
            shown += estimator.estimate(CLIP).shuffles[0].reasons
        except ConfigError as error:
            shown.append(str(error))
        server.faults.clear()
        estimator.estimate(CLIP)
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    stored = " ".join(path.read_text() for path in tmp_path.rglob("*.json"))
    for text in (*shown, caplog.text, repr(backend), str(backend.identity()), stored):
        assert SECRET not in text
    assert shown and stored
    if fault != "400":
        assert "***" in shown[0]


def test_keys_and_addresses_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="VG_ABSENT"):
        OpenAiBackend("http://127.0.0.1:1/v1", "m", "VG_ABSENT")
    monkeypatch.setenv("VG_TEST_KEY", SECRET + "\n")
    with pytest.raises(ConfigError) as caught:
        OpenAiBackend("http://127.0.0.1:1/v1", "m", "VG_TEST_KEY")
    assert SECRET not in str(caught.value)
    for url in (
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http://",
        "http://user:pw@host/v1",
        "http://host/v1?key=1",
    ):
        with pytest.raises(ConfigError) as caught:
            OpenAiBackend(url, "m")
        assert "pw" not in str(caught.value)


@pytest.mark.parametrize("state", ["honoured", "ignored", "refused"])
def test_a_schema_is_tried_before_it_is_believed(state: str) -> None:
    with FakeOpenAiServer(schema=state) as server:
        backend = OpenAiBackend(server.url, "m", patience=QUICK)
        assert backend.schema == state == backend.identity()["schema"]
        found = GvlEstimator(backend, AskSettings(shuffles=1)).estimate(CLIP)
        assert _good(found)
        assert ("response_format" in server.bodies[1]) == (state == "honoured")
        if state != "honoured":
            with pytest.raises(ConfigError, match=state):
                OpenAiBackend(server.url, "m", schema="on", patience=QUICK)


def test_fields_are_merged_and_taken_out() -> None:
    with FakeOpenAiServer() as server:
        fields = {"max_tokens": None, "max_completion_tokens": 900, "temperature": 1}
        backend = OpenAiBackend(server.url, "m", schema="off", patience=QUICK, fields=fields)
        GvlEstimator(backend, AskSettings(shuffles=1)).estimate(CLIP)
        assert "900" in backend.identity()["fields"]
    body = server.bodies[0]
    assert "max_tokens" not in body and body["max_completion_tokens"] == 900 and body["temperature"] == 1


def test_threads_share_a_backend() -> None:
    clips = [brightness_clip([0, i, 2 * i, 3 * i]) for i in range(2, 22)]
    with FakeOpenAiServer() as server:
        server.answer_after_s = 0.02
        backend = OpenAiBackend(server.url, "m", schema="off", patience=QUICK)
        estimator = GvlEstimator(backend, AskSettings(shuffles=1))
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(estimator.estimate, clips))
    assert [round(100 * (e.final or 0)) for e in found] == [3 * i for i in range(2, 22)]
    assert 1 < server.largest_parallel <= 4


@pytest.mark.parametrize(
    "reply, expected",
    [
        ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]}, ("ab", "")),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "eos"}]}, ("a", "stop")),
        ({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, ("", "stop")),
    ],
)
def test_completions_that_are_read(reply: object, expected: tuple[str, str]) -> None:
    assert read_completion(reply)[:2] == expected


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": 3}]},
        {"choices": [{"message": {"content": 3}}]},
    ],
)
def test_completions_that_are_not(reply: object) -> None:
    with pytest.raises(ValueError, match="reply"):
        read_completion(reply)
