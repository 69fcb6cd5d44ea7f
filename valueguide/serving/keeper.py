"""Keeps the models in service up to date: what a path or a folder of versions holds is loaded and swapped in.

A path may be a link that is pointed elsewhere, or a folder whose content is replaced. What cannot be loaded,
or does not fit, is refused; the present models go on, and the refusal is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from valueguide.errors import CheckpointError, mismatch
from valueguide.online.follow import VersionFollower
from valueguide.online.versions import CRITICS, STATE
from valueguide.serving.engine import Engine, Models

log = logging.getLogger("valueguide.serving")
_RETRY_S = 30.0
#: A checkpoint is what these say; policies have the first, critics the last as well.
_FILES = ("model.safetensors", "config.json", "manifest.json")


class Watched:
    """A checkpoint at a path: `changed` once it is another one than at the last look."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._seen = self._signature()
        self._again = float("inf")

    def changed(self) -> bool:
        seen = self._signature()
        if seen is None or (seen == self._seen and self._clock() < self._again):
            return False
        self._seen, self._again = seen, float("inf")
        return True

    def retry_later(self) -> None:
        """What was there could not be used: look again even if nothing changes."""
        self._again = self._clock() + _RETRY_S

    def _signature(self) -> Any:
        folder = Path(self.path)
        try:
            found = [(folder / name).stat() for name in _FILES if (folder / name).exists()]
        except OSError:
            return None
        return (
            (str(folder.resolve()), [(s.st_ino, s.st_mtime_ns, s.st_size) for s in found]) if found else None
        )


class Keeper:
    """Looks at `policy` and `critic` paths and swaps the engine's models. `poll` belongs to one thread.

    load_policy, load_critic: from a path, raise when it cannot be used. warm: called with ("policy" or
    "critic", the models with the new one), runs the new one once; of the policy while no decision is made.
    told: called with (model, outcome, text) for each swap or refusal. troubles: what is wrong now, by model.
    """

    def __init__(
        self,
        engine: Engine,
        policy: str,
        critic: str,
        load_policy: Callable[[str], Any],
        load_critic: Callable[[str], Any],
        warm: Callable[[str, Models], None],
        told: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        """policy: where the engine's policy came from. critic: folder of a critic or of versions, or ""."""
        self._engine, self._warm, self._told = engine, warm, told
        self._load_policy, self._load_critic = load_policy, load_critic
        self._policy = Watched(policy)
        self.troubles: dict[str, str] = {}
        self._versions: VersionFollower[Any] | None = None
        self._critic: Watched | None = None
        if critic and any((Path(critic) / name).exists() for name in (CRITICS, STATE)):
            self._versions = VersionFollower(critic, lambda path: self._checked(str(path)))
        elif critic:
            self._critic = Watched(critic)

    def begin(self) -> None:
        """Put the first critic in service. Raises what loading raises, or CheckpointError.

        A folder of versions none of which serves yet is fine: the policy works alone until one does.
        """
        if self._critic is not None:
            self._engine.models = replace(self._engine.models, critic=self._checked(self._critic.path))
        if self._versions is None:
            return
        self._versions.poll()
        if self._versions.troubles:
            raise CheckpointError("; ".join(self._versions.troubles.values()))
        if self._versions.serving is not None:
            self._engine.models = replace(self._engine.models, critic=self._versions.serving.content)

    def poll(self) -> None:
        """Look once."""
        if self._versions is not None:
            self._follow(self._versions)
        if self._critic is not None and self._critic.changed():
            path = self._critic.path
            self._swap("critic", self._critic, lambda: self._checked(path))
        if self._policy.changed():
            path = self._policy.path
            # Building a policy changes settings of torch for a moment: decisions wait meanwhile.
            with self._engine.pause:
                self._swap("policy", self._policy, lambda: self._policy_beside(path))

    def _follow(self, versions: VersionFollower[Any]) -> None:
        versions.poll()
        held, trouble = versions.serving, versions.troubles.get("serving") or versions.troubles.get("folder")
        if held is not None and held.content is not self._engine.models.critic:
            self._put("critic", held.content)
        if trouble and trouble != self.troubles.get("critic"):
            self._refuse("critic", trouble)
        elif not trouble:
            self.troubles.pop("critic", None)

    def _checked(self, path: str) -> Any:
        """A critic that fits the policy in service and has scored something."""
        critic = self._load_critic(path)
        now, then = self._engine.models, replace(self._engine.models, critic=critic)
        before, after = now.critic_facts(), then.critic_facts()
        if before is not None and after is not None:
            # Robots send what was wanted when they connected.
            sent = before.cameras | now.policy_facts().cameras
            if not after.cameras.items() <= sent.items():
                raise CheckpointError(mismatch(f"critic {path}", "cameras", f"some of {sent}", after.cameras))
            if after.environment_state_dim not in (0, before.environment_state_dim):
                raise CheckpointError(
                    mismatch(
                        f"critic {path}",
                        "environment state",
                        f"{before.environment_state_dim} values",
                        after.environment_state_dim,
                    )
                )
        self._warm("critic", then)
        return critic

    def _policy_beside(self, path: str) -> Any:
        now, policy = self._engine.models.policy, self._load_policy(path)
        for what in ("action_dim", "history", "cameras"):
            old, new = getattr(now, what, None), getattr(policy, what, None)
            if old != new:
                raise CheckpointError(mismatch(f"policy {path}", what, f"{old} as before", new, "Start anew"))
        self._warm("policy", replace(self._engine.models, policy=policy))
        return policy

    def _swap(self, model: str, watched: Watched, make: Callable[[], Any]) -> None:
        try:
            made = make()
        except Exception as error:  # whatever is wrong with it, the robots go on with the present one
            watched.retry_later()
            self._refuse(model, f"{watched.path}: {type(error).__name__}: {error}")
            return
        self.troubles.pop(model, None)
        if made.version != getattr(self._engine.models, model).version:
            self._put(model, made)

    def _put(self, model: str, made: Any) -> None:
        self._engine.models = replace(self._engine.models, **{model: made})
        log.info("%s %s in service", model, made.version)
        self._told(model, "swapped", made.version)

    def _refuse(self, model: str, why: str) -> None:
        self.troubles[model] = why
        log.error("%s refused: %s", model, why)
        self._told(model, "refused", why)


class KeeperThread:
    """Polls every `period_s`, and at once after `look`."""

    def __init__(self, poll: Callable[[], None], period_s: float) -> None:
        self._poll, self._period_s = poll, period_s
        self._ended, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="keeper")
        self._thread.start()

    def look(self) -> None:
        """Now; from a signal handler, too."""
        self._news.set()

    def close(self) -> None:
        """Returns after 2 s at most, also in the middle of loading."""
        self._ended.set()
        self._news.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._news.wait(self._period_s)
            self._news.clear()
            if not self._ended.is_set():
                try:
                    self._poll()
                except Exception:  # must not end the watch
                    log.exception("looking for new models")
