"""Answers on disk, so that nothing is asked or paid for twice and a run that was cut off goes on.

One small JSON file an answer, named by a digest of everything that the answer depends on. Files appear
whole (atomic rename); one that is damaged is ignored, with a warning, and written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.progress.request import Reply, Request

log = logging.getLogger("valueguide.progress")
_FIELDS = ("text", "finish", "log_probability", "input_tokens", "output_tokens", "seconds")


def request_key(request: Request, identity: dict[str, str]) -> str:
    """sha256 (64 hex digits) over the backend's identity, prompt, pictures, seed, attempt and sampling."""
    prompt = request.prompt
    facts = {
        "backend": identity,
        "version": prompt.version,
        "answer": prompt.answer,
        "asked": prompt.asked,
        "continuation": prompt.continuation,
        "parts": [_part(part) for part in prompt.parts],
        "order": request.order.tolist(),
        "seed": request.seed,
        "attempt": request.attempt,
        "sampling": asdict(request.sampling),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """A folder of answers. Several processes may use it at once: the same key always means the same file.

    AnswerCache(None) keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._guard, self._locks = threading.Lock(), dict[str, threading.Lock]()

    def alone(self, key: str) -> threading.Lock:
        """Held from `get` to `put`, it keeps threads from asking the same at the same time (blank clips)."""
        if self._folder is None:
            return threading.Lock()
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())

    def get(self, key: str) -> Reply | None:
        """The stored answer, marked as cached, or None."""
        path = self._path(key)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: not readable (%s); asking again", path, error.strerror)
            return None
        try:
            return _reply(json.loads(content), key)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: damaged cache entry (%s); asking again", path, error)
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Store an answer. Raises OSError (a full disk)."""
        path = self._path(key)
        if path is not None:
            stored = {name: getattr(reply, name) for name in _FIELDS}
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_name(f".{key}.{os.getpid()}.tmp")  # other processes may write the same key
            try:
                whole.write_text(json.dumps({"key": key, "sha256": _digest(stored), "reply": stored}))
                os.replace(whole, path)  # not flushed: what a power failure halves, its digest gives away
            except OSError:
                whole.unlink(missing_ok=True)
                raise

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / key[:2] / f"{key}.json"


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    digest = hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
    return {"image": digest, "shape": list(part.shape)}


def _digest(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def _reply(entry: Any, key: str) -> Reply:
    stored = entry["reply"]
    if entry["key"] != key or entry["sha256"] != _digest(stored) or set(stored) != set(_FIELDS):
        raise ValueError("content does not match its digest")
    return Reply(**stored, cached=True)
