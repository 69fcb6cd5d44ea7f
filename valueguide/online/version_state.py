"""Who serves, who is in shadow, and where a rollback leads: the state machine of critic versions, no disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from valueguide.errors import CheckpointError, mismatch

Action = Literal["promote", "rollback"]
#: How many rollbacks in a row are certain to find their version; older ones may be pruned.
MOST_EARLIER = 3
#: Changes that are remembered; the oldest go first.
_MOST_HISTORY = 1000
_FORMAT = 1


@dataclass(frozen=True)
class Change:
    """From `at` (UTC, ISO 8601) on version `number` served instead of `before` (None: nothing did)."""

    action: Action
    number: int
    before: int | None
    reason: str
    at: str
    forced: bool = False


@dataclass(frozen=True)
class VersionState:
    """serving, shadow: numbers of versions, never the same, or None.

    earlier: what served before, the latest last, without repetition: the way back of rollbacks.
    history: promotions and rollbacks, oldest first.
    """

    serving: int | None = None
    shadow: int | None = None
    earlier: tuple[int, ...] = ()
    history: tuple[Change, ...] = ()

    @property
    def previous(self) -> int | None:
        """Where a rollback leads."""
        return self.earlier[-1] if self.earlier else None

    @property
    def in_use(self) -> frozenset[int]:
        """What must not be removed."""
        return frozenset(n for n in (self.serving, self.shadow, *self.earlier) if n is not None)

    @property
    def withdrawn(self) -> frozenset[int]:
        """What was rolled back and not promoted again since."""
        found: set[int] = set()
        for change in self.history:
            found.discard(change.number)
            if change.action == "rollback" and change.before is not None:
                found.add(change.before)
        return frozenset(found)

    @property
    def highest(self) -> int:
        """The highest number that is mentioned, 0 without any."""
        return max([*self.in_use, *(change.number for change in self.history)], default=0)

    def role(self, number: int) -> str:
        """ "serving", "shadow", "previous", "withdrawn" or ""."""
        if number in (self.serving, self.shadow, self.previous):
            return {self.serving: "serving", self.shadow: "shadow"}.get(number, "previous")
        return "withdrawn" if number in self.withdrawn else ""

    def why(self, number: int) -> str:
        """The reason that was given when the version was last rolled back."""
        reasons = [c.reason for c in self.history if c.action == "rollback" and c.before == number]
        return (reasons[-1] if reasons else "") or "no reason given"

    def promoted(self, number: int, change: Change) -> VersionState:
        """`number`, another than the serving one, serves; a shadow that is promoted is none any more."""
        before = () if self.serving is None else (self.serving,)
        earlier = (*(n for n in self.earlier if n != number), *before)
        return self._serve(number, earlier[-MOST_EARLIER:], change)

    def rolled_back(self, number: int, change: Change) -> VersionState:
        """`number`, one of `earlier`, serves again; those that served after it leave the way back."""
        return self._serve(number, self.earlier[: self.earlier.index(number)], change)

    def _serve(self, number: int, earlier: tuple[int, ...], change: Change) -> VersionState:
        shadow = None if self.shadow == number else self.shadow
        return replace(
            self,
            serving=number,
            shadow=shadow,
            earlier=earlier,
            history=(*self.history, change)[-_MOST_HISTORY:],
        )

    def to_json(self) -> dict[str, Any]:
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> VersionState:
        """Raises CheckpointError, naming `where`, for anything that `to_json` cannot have made."""
        if content.get("format") != _FORMAT:
            raise CheckpointError(mismatch(where, "format", _FORMAT, content.get("format")))
        try:
            history = tuple(Change(**change) for change in content["history"])
            earlier = tuple(content["earlier"])
            state = cls(content["serving"], content["shadow"], earlier, history)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{where}: expected the state of critic versions, found {error}") from error
        state._check(where)
        return state

    def _check(self, where: str) -> None:
        changes = [number for change in self.history for number in (change.number, change.before)]
        numbers = [*self.earlier, *(n for n in (self.serving, self.shadow, *changes) if n is not None)]
        rules: dict[str, Callable[[], bool]] = {
            "numbers": lambda: all(type(n) is int and n > 0 for n in numbers),
            "earlier versions": lambda: len({*self.earlier, self.serving}) == len(self.earlier) + 1,
            "shadow": lambda: self.shadow is None or self.shadow != self.serving,
            "history": lambda: (self.history[-1].number if self.history else None) == self.serving,
        }
        for what, holds in rules.items():
            if not holds():
                raise CheckpointError(f"{where}: damaged: its {what} cannot be right")
