"""A process that ends when its standard input is closed, and so does not outlive who started it."""

from __future__ import annotations

import os
import threading


def input_closed() -> threading.Event:
    """Set once standard input is closed. What comes in before is read and dropped."""
    closed = threading.Event()

    def listen() -> None:
        while os.read(0, 1024):  # not `sys.stdin`, whose lock would be held when the interpreter ends
            pass
        closed.set()

    threading.Thread(target=listen, daemon=True, name="standard input").start()
    return closed
