"""Robots ask a `valueguide serve` process for a long time: does memory grow, do answers become slower?

Server and robots are processes of their own, with real sockets, models and episodes between them. Robots ask
as robots do, at the suite's control rate. Every second one says goodbye now and then and comes again;
visitors come more often, and half of them leave without a word. Somebody reads the server's metrics.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import zmq

from valueguide.bench.soak_robot import RobotPlan
from valueguide.bench.soak_watch import Usage, usage
from valueguide.errors import LinkError, mismatch
from valueguide.evaluation.arms import ArmSettings
from valueguide.testing.serve_process import Serve
from valueguide.transport.messages import BYE, HELLO, WELCOME, Hello, body_of, read_refusal
from valueguide.transport.wire import Message, decode, encode

SERVER = "server"
_ANSWER_MS, _START_S, _LAST_LINES = 10_000, 300.0, 15


@dataclass(frozen=True)
class SoakPlan:
    """Everything that defines the measurement. Times in seconds.

    warm_up: share of the time that is not measured. timeout_s: until when an answer must have come.
    reconnect_s: how long every second robot stays before it comes again. sample_s: between looks at the
    processes and the metrics; visit_s: between visitors.
    """

    suite: str
    tasks: tuple[str, ...]
    robots: int
    seconds: float
    seed: int
    settings: ArmSettings
    warm_up: float = 0.2
    timeout_s: float = 1.0
    reconnect_s: float = 60.0
    sample_s: float = 5.0
    visit_s: float = 10.0


@dataclass
class Record:
    """What was seen; `at` is in seconds from the start. usage: process -> (at, what it held).

    decisions: (at, milliseconds from the question to the answer). errors: (at, text): questions without an
    answer, metrics that could not be read, visitors that were not greeted.
    """

    usage: dict[str, list[tuple[float, Usage]]] = field(default_factory=dict)
    decisions: list[tuple[float, float]] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    episodes: int = 0
    successes: int = 0
    sessions: int = 0
    visits: int = 0
    scrapes: int = 0


def soak(plan: SoakPlan, progress: Callable[[float, Record], None] = lambda at, record: None) -> Record:
    """Run it. progress: called after each look, with the seconds so far.

    Raises LinkError when the server or a robot ends before its time.
    """
    record = Record()
    with _serving(plan) as server, contextlib.ExitStack() as stack:
        robots = [_Robot(plan, number, server.endpoint, record) for number in range(plan.robots)]
        for robot in robots:
            stack.enter_context(robot)
        _until_all_ask(robots, server)
        start = time.monotonic()
        for robot in robots:
            robot.start = start
        processes = {SERVER: server.process, **{robot.name: robot.process for robot in robots}}
        record.usage = {name: [] for name in processes}
        next_visit = 0.0
        for look in range(1, int(plan.seconds / plan.sample_s) + 1):
            while (wait := start + look * plan.sample_s - time.monotonic()) > 0:
                at = time.monotonic() - start
                if at >= next_visit:
                    next_visit = at + plan.visit_s
                    _visit(server.endpoint, at, record)
                time.sleep(min(wait, plan.visit_s, 0.5))
            _check_alive(processes, robots, server)
            at = time.monotonic() - start
            for name, process in processes.items():
                record.usage[name].append((at, usage(process.pid)))
            _scrape(server, at, record)
            progress(at, record)
    return record


@contextlib.contextmanager
def _serving(plan: SoakPlan) -> Iterator[Serve]:
    settings = plan.settings
    server = Serve(settings.critic, "--policy", settings.policy, "--k", str(settings.k))
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


class _Robot:
    """The process, and a thread that reads what it says. start: of the measurement, monotonic seconds."""

    def __init__(self, plan: SoakPlan, number: int, endpoint: str, record: Record) -> None:
        settings = plan.settings
        what = RobotPlan(
            endpoint=endpoint,
            suite=plan.suite,
            tasks=plan.tasks,
            name=f"robot {number}",
            seed=plan.seed + 100_000 * number,
            k=settings.k,
            execute=settings.execute,
            aggregate=settings.aggregate,
            timeout_s=plan.timeout_s,
            reconnect_s=plan.reconnect_s if number % 2 else None,
        )
        self.name, self.start, self._record = what.name, float("inf"), record
        self.asks = threading.Event()
        self.last: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "valueguide.bench.soak_robot", json.dumps(asdict(what))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._threads = [
            threading.Thread(target=work, daemon=True, name=self.name)
            for work in (self._read, self._remember)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> _Robot:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        for line in self.process.stdout or []:
            said, record = json.loads(line), self._record
            at = said["at"] - self.start
            if "decision_ms" in said:
                self.asks.set()
            if at < 0:
                continue
            if "decision_ms" in said:
                record.decisions.append((at, said["decision_ms"]))
            elif "error" in said:
                record.errors.append((at, f"{self.name}: {said['error']}"))
            elif "episode" in said:
                record.episodes += 1
                record.successes += said["episode"]
            else:
                record.sessions += 1

    def _remember(self) -> None:
        for line in self.process.stderr or []:
            self.last = [*self.last[1 - _LAST_LINES :], line.strip()]


def _until_all_ask(robots: list[_Robot], server: Serve) -> None:
    """The time before belongs to imports and to making environments."""
    limit = time.monotonic() + _START_S
    processes = {SERVER: server.process, **{robot.name: robot.process for robot in robots}}
    while not all(robot.asks.is_set() for robot in robots):
        _check_alive(processes, robots, server)
        if time.monotonic() > limit:
            raise LinkError(mismatch("soak", "robots", f"decisions within {_START_S:g} s", "none"))
        time.sleep(0.1)


def _check_alive(processes: dict[str, Any], robots: list[_Robot], server: Serve) -> None:
    said = {SERVER: server.lines[-_LAST_LINES:], **{robot.name: robot.last for robot in robots}}
    for name, process in processes.items():
        if process.poll() is not None:
            why = f"exit status {process.returncode} ({' '.join(said[name]).strip()})"
            raise LinkError(mismatch("soak", name, "a process that runs to the end", why))


def _visit(endpoint: str, at: float, record: Record) -> None:
    """A robot that is greeted and leaves at once, every second time without a goodbye."""
    record.visits += 1
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 1000
        socket.connect(endpoint)
        socket.send_multipart(encode(Message(HELLO, seq=1, body=body_of(Hello("visitor")))))
        if not socket.poll(_ANSWER_MS):
            record.errors.append((at, "visitor: no answer to hello"))
            return
        welcome = decode(socket.recv_multipart())
        if welcome.kind != WELCOME:
            record.errors.append((at, f"visitor: {read_refusal(welcome)}"))
        elif record.visits % 2:
            socket.send_multipart(encode(Message(BYE, session=welcome.session, seq=2)))


def _scrape(server: Serve, at: float, record: Record) -> None:
    for path in ("/metrics", "/health"):
        try:
            with urllib.request.urlopen(f"{server.page}{path}", timeout=1e-3 * _ANSWER_MS) as answer:
                answer.read()
            record.scrapes += 1
        except OSError as error:
            record.errors.append((at, f"{path}: {error}"))
