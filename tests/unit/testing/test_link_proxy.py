"""The bad network that link tests run over: each of its faults, on real sockets."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from valueguide.testing.link_proxy import DOWN, UP, LinkFaults, LinkProxy, Schedule

_DATA = bytes(range(256)) * 1000


@contextmanager
def _echo() -> Iterator[int]:
    """A server that sends back what it gets, and closes when the client does; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk(peer: socket.socket) -> None:
            with peer:
                try:
                    while data := peer.recv(65536):
                        peer.sendall(data)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def _connect(proxy: LinkProxy, timeout_s: float = 10.0) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port))
    client.settimeout(timeout_s)
    return client


def _read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := client.recv(65536)):
        data += piece
    return data


def _round_trip(client: socket.socket, data: bytes) -> float:
    start = time.monotonic()
    threading.Thread(target=client.sendall, args=(data,)).start()
    assert _read(client, len(data)) == data
    return time.monotonic() - start


def test_without_faults_everything_passes_and_closes() -> None:
    with _echo() as port, LinkProxy(port) as proxy, _connect(proxy) as client:
        _round_trip(client, _DATA)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        assert proxy.connections == 1 and proxy.forwarded == {UP: len(_DATA), DOWN: len(_DATA)}


def test_delay_is_paid_both_ways() -> None:
    with _echo() as port, LinkProxy(port, LinkFaults(delay_s=0.1)) as proxy, _connect(proxy) as client:
        assert 0.2 <= _round_trip(client, b"x") < 1.5
        assert _round_trip(client, _DATA) < 2.0  # under way at once, not one after another


def test_order_and_content_survive_jitter_and_loss() -> None:
    faults = LinkFaults(delay_s=0.01, jitter_s=0.01, loss=0.2, stall_s=0.02, seed=3)
    with _echo() as port, LinkProxy(port, faults) as proxy, _connect(proxy) as client:
        _round_trip(client, _DATA)


def test_bandwidth() -> None:
    faults = LinkFaults(bytes_per_s=len(_DATA) / 0.4)
    with _echo() as port, LinkProxy(port, faults) as proxy, _connect(proxy) as client:
        assert 0.4 <= _round_trip(client, _DATA) < 2.5


def test_half_open_is_silent_and_looks_alive() -> None:
    with _echo() as port, LinkProxy(port) as proxy, _connect(proxy, 0.3) as client:
        _round_trip(client, b"before")
        proxy.freeze()
        client.sendall(b"during")
        with pytest.raises(TimeoutError):
            client.recv(1)
        with _connect(proxy, 0.3) as other:  # accepted, and as silent
            other.sendall(b"other")
            with pytest.raises(TimeoutError):
                other.recv(1)
        proxy.thaw()
        client.settimeout(10)
        assert _read(client, 6) == b"during"


def test_a_frozen_link_pushes_back() -> None:
    with _echo() as port, LinkProxy(port) as proxy, _connect(proxy, 0.5) as client:
        proxy.freeze()
        with pytest.raises(TimeoutError):
            client.sendall(bytes(1 << 26))


def test_a_cut_resets_both_sides_and_new_connections_pass() -> None:
    with _echo() as port, LinkProxy(port) as proxy, _connect(proxy) as client:
        _round_trip(client, b"before")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with _connect(proxy) as again:
            _round_trip(again, b"after")
        assert proxy.connections == 2


def test_a_cut_that_refuses_until_it_is_mended() -> None:
    with _echo() as port, LinkProxy(port) as proxy:
        proxy.cut(refuse=True)
        with _connect(proxy) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        proxy.mend()
        with _connect(proxy) as again:
            _round_trip(again, b"after")


def test_a_target_that_is_not_there_resets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with LinkProxy(port) as proxy, _connect(proxy) as client, pytest.raises(ConnectionResetError):
        client.recv(1)


def test_faults_may_change_on_the_way() -> None:
    with _echo() as port, LinkProxy(port) as proxy, _connect(proxy) as client:
        _round_trip(client, b"x")
        proxy.faults = LinkFaults(delay_s=0.15)
        assert _round_trip(client, b"x") >= 0.3


def test_http_and_zeromq_pass() -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    faults = LinkFaults(delay_s=0.02, jitter_s=0.01, loss=0.1, stall_s=0.05)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with LinkProxy(server.server_address[1], faults) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        connection.close()
    server.shutdown()
    server.server_close()
    with zmq.Context() as context, context.socket(zmq.REP) as reply, context.socket(zmq.REQ) as request:
        port = reply.bind_to_random_port("tcp://127.0.0.1")
        with LinkProxy(port, faults) as proxy:
            request.connect(f"tcp://127.0.0.1:{proxy.port}")
            request.send(_DATA)
            assert reply.poll(10_000) and reply.recv() == _DATA
            reply.send(b"ok")
            assert request.poll(10_000) and request.recv() == b"ok"
            request.linger = reply.linger = 0


_TIMES = st.floats(0, 1)


@given(
    pieces=st.lists(st.tuples(_TIMES, st.integers(0, 16_384)), max_size=30),
    faults=st.builds(LinkFaults, _TIMES, _TIMES, _TIMES, _TIMES, st.floats(1e3, 1e9)),
)
def test_pieces_arrive_in_order_within_bounds_and_the_same_for_a_seed(
    pieces: list[tuple[float, int]], faults: LinkFaults
) -> None:
    first, again = Schedule("7 0 up"), Schedule("7 0 up")
    now, before = 0.0, 0.0
    for wait, size in pieces:
        now += wait
        due = first.due(now, size, faults)
        assert due == again.due(now, size, faults)
        assert due >= max(now, before)
        before = due
    longest = faults.delay_s + faults.jitter_s + faults.stall_s
    assert before <= now + longest + sum(size for _, size in pieces) / faults.bytes_per_s + 1e-9


def test_a_schedule_by_hand() -> None:
    """1000 B/s: 100 bytes take 0.1 s on the wire, then 0.05 s; the second waits for the first to be sent."""
    faults = LinkFaults(delay_s=0.05, bytes_per_s=1000)
    schedule = Schedule("0 0 up")
    assert schedule.due(0.0, 100, faults) == pytest.approx(0.15)
    assert schedule.due(0.0, 100, faults) == pytest.approx(0.25)
    assert schedule.due(9.0, 100, faults) == pytest.approx(9.15)
    lossy = LinkFaults(loss=1.0, stall_s=0.2)
    assert Schedule("0").due(1.0, 5, lossy) == pytest.approx(1.2)
    draws = [Schedule(f"{i}").due(0.0, 1, LinkFaults(0.05, 0.02)) for i in range(200)]
    assert min(draws) < 0.04 and max(draws) > 0.06 and all(0.03 <= d <= 0.07 for d in draws)
