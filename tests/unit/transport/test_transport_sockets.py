"""Lean sending and receiving, and the sleep that sockets and other threads end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from valueguide.transport.sockets import Sleep, poll, receive, send


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        yield one, other


def test_messages_come_whole_and_apart(pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    one, other = pair
    assert not poll((other,))
    send(one, [b"a", memoryview(b"bb"), b""])
    send(one, [b"c"])
    assert poll((other,), 1000) == [other]
    assert [frame.bytes for frame in receive(other)] == [b"a", b"bb", b""]
    assert [frame.bytes for frame in receive(other)] == [b"c"]
    with pytest.raises(zmq.Again):
        receive(other)


def test_a_full_socket_takes_nothing_of_a_message() -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as nobody, pytest.raises(zmq.Again):
        send(nobody, [b"a", b"b"])


def test_what_was_sent_may_change_at_once(pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    one, other = pair
    picture = bytearray(b"x" * 200_000)
    send(one, [memoryview(picture)])
    picture[:] = b"y" * 200_000
    poll((other,), 1000)
    assert receive(other)[0].bytes == b"x" * 200_000


def test_news_end_a_sleep_unless_it_is_hushed(pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    one, other = pair
    sleep = Sleep()
    sleep.watch(other)
    poll((other,))
    assert not sleep.sleep(0.01)
    sleep.hush(True)
    send(one, [b"a"])
    assert not sleep.sleep(0.05)
    sleep.hush(False)
    assert sleep.sleep(5.0)
    poll((other,))
    receive(other)
    assert not poll((other,)) and not sleep.sleep(0.01)
    sleep.watch()
    sleep.close()


def test_another_thread_ends_a_sleep_and_may_do_so_at_any_time() -> None:
    sleep = Sleep()
    threading.Timer(0.1, sleep.wake).start()
    start = time.monotonic()
    assert sleep.sleep(20.0) and time.monotonic() - start < 10
    sleep.heard()
    assert not sleep.sleep(0.01)
    for _ in range(100_000):  # more than anybody has room for
        sleep.wake()
    assert sleep.sleep(0.0)
    sleep.close()
    sleep.wake()
    sleep.heard()
