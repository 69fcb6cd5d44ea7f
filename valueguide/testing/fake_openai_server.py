"""An OpenAI-compatible server on a real socket that sees pictures by brightness and fails on demand."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from valueguide.data.images import decode_image
from valueguide.progress.request import Prompt
from valueguide.testing.fake_progress import asked_pictures, written
from valueguide.types import UInt8

#: What the server can do instead of answering well.
FAULTS = (
    "429", "429-date", "429-long", "500", "503", "hang", "drip", "cut", "truncated", "garbage", "html",
    "error-200", "list", "length", "reordered", "no-usage", "refusal", "400", "401", "echo-key", "redirect",
)  # fmt: skip


class FakeOpenAiServer:
    """Answers progress prompts with the brightness of each picture. Use as a context manager.

    faults: what to do with each chat request in turn, a name of FAULTS or "" for a good answer; afterwards
        all answers are good. schema: "honoured", "ignored" or "refused". hang_s: length of a hang.
    bodies, headers: what was received. largest_parallel: how many requests were open at once.
    """

    def __init__(self, faults: list[str] | None = None, schema: str = "ignored", hang_s: float = 3.0) -> None:
        unknown = set(faults or ()) - {"", *FAULTS}
        assert not unknown, f"unknown faults {unknown}"
        self.faults, self.schema, self.hang_s = list(faults or ()), schema, hang_s
        self.answer_after_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open, self.largest_parallel = 0, 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeOpenAiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}


def _handler(server: FakeOpenAiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.bodies.append(body)
                server.headers.append(dict(self.headers.items()))
                fault = server.faults.pop(0) if server.faults else ""
                server.open += 1
                server.largest_parallel = max(server.largest_parallel, server.open)
            try:
                time.sleep(server.answer_after_s)
                self._answer(fault, body)
            except OSError:
                return  # the client has gone
            finally:
                with server.lock:
                    server.open -= 1

        def _answer(self, fault: str, body: dict[str, Any]) -> None:
            if self.path != "/v1/chat/completions":
                return self._send(404, b"{}")
            if fault == "hang":
                time.sleep(server.hang_s)
            elif fault == "drip":
                return self._drip()
            elif fault in ("cut", "truncated"):
                return self._send_part(json.dumps(_good(body)).encode(), announce=fault == "cut")
            status, headers, content = _faulty(fault, body, self.headers.get("Authorization", ""))
            if not fault and "response_format" in body and server.schema == "refused":
                status, content = 400, b'{"error": "response_format is not supported"}'
            elif not fault and "response_format" in body and server.schema == "honoured":
                content = json.dumps(_held_to_schema(body)).encode()
            self._send(status, content, headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _send_part(self, content: bytes, announce: bool) -> None:
            """Half of the body, then the end of the connection; `announce` the whole length before."""
            self.send_response(200)
            if announce:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True

        def _drip(self) -> None:
            """A byte now and then, so that no single read ever times out."""
            self.send_response(200)
            self.end_headers()
            end = time.monotonic() + server.hang_s
            while time.monotonic() < end:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)

    return Handler


def _faulty(fault: str, body: dict[str, Any], authorization: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content for the faults that send a whole reply."""
    if fault.startswith("429"):
        wait = {"429": "0", "429-date": "Thu, 01 Jan 1970 00:00:00 GMT", "429-long": "7200"}[fault]
        return 429, {"Retry-After": wait}, b'{"error": "slow down"}'
    if fault in ("400", "500", "503"):
        return int(fault), {}, b'{"error": "broken"}'
    if fault in ("401", "echo-key"):
        status = 401 if fault == "401" else 500
        return status, {}, json.dumps({"error": f"not allowed: {authorization}"}).encode()
    if fault == "redirect":
        return 307, {"Location": "http://127.0.0.1:9/v1/chat/completions"}, b""
    raw = {"garbage": b"\x00\xff{{{", "html": b"<html>proxy</html>", "list": b"[1, 2]"}
    raw["error-200"] = b'{"error": {"message": "overloaded"}}'
    if fault in raw:
        return 200, {}, raw[fault]
    return 200, {}, json.dumps(_good(body, fault)).encode()


def _good(body: dict[str, Any], fault: str = "") -> dict[str, Any]:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return completion("The sea is wide.")
    prompt = Prompt(tuple(_parts(content)), 0, "json", "")
    values = [float(picture.flat[0]) for picture in asked_pictures(prompt)]
    as_json = any("JSON" in part for part in prompt.parts if isinstance(part, str))
    text = written(values, "json" if as_json else "lines")
    if fault == "reordered":
        frames = json.loads(text)["frames"] if as_json else text.splitlines()
        text = json.dumps({"frames": frames[::-1]}) if as_json else "\n".join(frames[::-1])
    if fault == "refusal":
        return completion(None, refusal="I cannot look at that.")
    answer = completion(text[:-1], "length") if fault == "length" else completion(text)
    if fault == "no-usage":
        del answer["usage"]
    return answer


def _held_to_schema(body: dict[str, Any]) -> dict[str, Any]:
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    if "probe" in properties:
        return completion(json.dumps({"probe": properties["probe"]["enum"][0]}))
    return _good(body)


def _parts(content: list[dict[str, Any]]) -> Iterator[str | UInt8]:
    for part in content:
        if part["type"] == "text":
            yield part["text"]
        else:
            encoded = part["image_url"]["url"].removeprefix("data:image/png;base64,")
            yield decode_image(base64.b64decode(encoded, validate=True), "request")
