"""What a link to somebody else's policy server offers, and how it fails."""

from __future__ import annotations

import time
from typing import Any, Protocol

from valueguide.errors import LinkError

#: A server that is there accepts a connection within this time, however long its model takes to answer.
CONNECT_S = 10.0


class LateReply(LinkError):
    """The deadline passed. The answer may still come, so the connection must not be used again."""


class LinkClosed(LinkError):
    """The other side closed the connection, or nobody listens."""


class PolicyServerLink(Protocol):
    """One connection to a policy server, used by one thread. Deadlines are on `time.monotonic`.

    batches: whether one request may ask for several chunks. Every method but `close` raises LinkError (or
    one of the two above) or DataError, after which the caller closes the link.
    """

    batches: bool

    def open(self, deadline: float) -> bool:
        """Connect unless connected. True when the connection is a new one."""

    def metadata(self) -> Any:
        """What the server said of itself when it was last connected to."""

    def reset(self, deadline: float) -> None:
        """Tell the server that an episode begins, where its protocol has a word for it."""

    def ask(self, parts: dict[str, Any], rows: int, seed: int | None, deadline: float) -> Any:
        """Their key -> array of actions for one observation; `rows` chunks of it where the link batches."""

    def close(self) -> None:
        """Throw the connection away, with whatever may still arrive on it."""


def remaining(deadline: float) -> float:
    """Seconds left, 0 at least."""
    return max(0.0, deadline - time.monotonic())


def one_line(text: str, longest: int = 200) -> str:
    """The last line of a server's message that says anything, for an error of ours."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    printable = "".join(c if c.isprintable() else "?" for c in (lines[-1] if lines else "nothing"))
    return printable[:longest]
