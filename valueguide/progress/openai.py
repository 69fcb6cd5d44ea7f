"""Backend `openai`: any endpoint with OpenAI's chat completions (vLLM, llama.cpp, Ollama, hosted ones)."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

from valueguide.data.images import encode_image
from valueguide.errors import ConfigError, mismatch
from valueguide.progress.http import JsonEndpoint, Patience, RequestRefused
from valueguide.progress.prompt import answer_schema, tokens_needed
from valueguide.progress.request import Answer, Prompt, Reply, Request

Schema = Literal["auto", "on", "off"]
_PATH = "/chat/completions"
_ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}
#: Nothing in the question leads to this answer; only a decoder that is held to the schema gives it.
_PROBE_QUESTION = "Write one sentence about the sea."
_PROBE_ANSWER = {"probe": "violet-27"}
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"probe": {"type": "string", "enum": ["violet-27"]}},
    "required": ["probe"],
    "additionalProperties": False,
}


class OpenAiBackend:
    """One model behind one endpoint.

    url: base address, such as http://127.0.0.1:8000/v1. model: its name there.
    key_variable: environment variable that holds the key; "" sends none.
    schema: "auto" holds answers to a JSON schema if a test shows that the endpoint heeds it, "on" insists,
        "off" does not ask. Some servers accept a schema and ignore it, so it is tried, not believed.
    fields: merged into every request, over what stands there; a value of None takes a field out.
    Raises ConfigError when the variable is not set or the address is wrong.
    """

    answers: tuple[Answer, ...] = ("json", "lines")

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "",
        schema: Schema = "auto",
        concurrency: int = 4,
        patience: Patience | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        key = os.environ.get(key_variable, "") if key_variable else ""
        if key_variable and not key:
            raise ConfigError(mismatch("endpoint", "key", f"in the environment as {key_variable}", "nothing"))
        if concurrency < 1:
            raise ConfigError(mismatch("endpoint", "concurrency", "1 or more", concurrency))
        if not model:
            raise ConfigError(mismatch("endpoint", "model", "its name at the endpoint", "none"))
        self._endpoint = JsonEndpoint(url, key, patience)
        self._model, self._fields = model, dict(fields or {})
        self.concurrency = concurrency
        self.schema: str = "off" if schema == "off" else self._probe(schema)

    def identity(self) -> dict[str, str]:
        return {
            "kind": "openai",
            "endpoint": self._endpoint.url,
            "model": self._model,
            "schema": self.schema,
            "fields": json.dumps(self._fields, sort_keys=True),
        }

    def ask(self, request: Request) -> Reply:
        sampling = request.sampling
        body = {
            "messages": [{"role": "user", "content": _content(request.prompt)}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens or tokens_needed(request.prompt),
            "seed": request.seed + 7919 * request.attempt,
        }
        if self.schema == "honoured" and request.prompt.answer == "json":
            body["response_format"] = _response_format(answer_schema(request.prompt))
        return self._post(body)

    def _post(self, body: dict[str, Any]) -> Reply:
        start = time.perf_counter()
        merged = {"model": self._model} | body | self._fields
        kept = {name: value for name, value in merged.items() if value is not None}
        text, finish, usage = self._endpoint.post(_PATH, kept, read_completion)
        return Reply(
            text,
            finish,
            input_tokens=_count(usage, "prompt_tokens"),
            output_tokens=_count(usage, "completion_tokens"),
            seconds=time.perf_counter() - start,
        )

    def _probe(self, schema: Schema) -> str:
        """ "honoured", "ignored" or "refused". Raises RequestFailed or ConfigError when nothing answers."""
        body = {
            "messages": [{"role": "user", "content": _PROBE_QUESTION}],
            "temperature": 0.0,
            "max_tokens": 512,
            "response_format": _response_format(_PROBE_SCHEMA),
        }
        try:
            found = "honoured" if _is_json(self._post(body).text, _PROBE_ANSWER) else "ignored"
        except RequestRefused:
            found = "refused"
        if schema == "on" and found != "honoured":
            raise ConfigError(
                mismatch(self._endpoint.url, "JSON schema", "honoured", found, "Use schema auto")
            )
        return found


def read_completion(reply: Any) -> tuple[str, str, dict[str, Any]]:
    """Text, finish (see Reply) and usage of a chat completion. Raises ValueError for anything else."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        usage, reason = reply.get("usage"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the reply is no chat completion: {str(reply)[:200]}") from error
    if isinstance(content, list):
        pieces = [piece.get("text") for piece in content if isinstance(piece, dict)]
        content = "".join(piece for piece in pieces if isinstance(piece, str))
    if content is None:
        content, reason = "", "refusal" if refusal else reason
    if not isinstance(content, str):
        raise ValueError("the reply's content is no text")
    finish = "stop" if reason in _ENDED else ("" if reason is None else str(reason))
    return content, finish, usage if isinstance(usage, dict) else {}


def _content(prompt: Prompt) -> list[dict[str, Any]]:
    """Text and pictures as OpenAI's content parts; PNG, so that the pictures arrive as they are."""
    parts: list[dict[str, Any]] = []
    for part in prompt.parts:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            encoded = base64.b64encode(encode_image(part, "png")).decode()
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}})
    return parts


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _is_json(text: str, expected: Any) -> bool:
    try:
        return bool(json.loads(text) == expected)
    except (ValueError, RecursionError):
        return False


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
