"""Every process of a served system killed, stopped and started again at random moments.

Server, robot, publisher of critics and readers of the status page are processes; the network between robot
and server is a proxy. EVENTS=500 makes it longer, and `-m "slow and faults"` runs more seeds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.online.versions import CriticVersions
from valueguide.testing.fakes import FakeCritic
from valueguide.testing.link_proxy import LinkProxy
from valueguide.testing.stand_ins import (
    CANDIDATES,
    EXECUTE,
    PERIOD_S,
    TIMEOUT_S,
    StandIn,
    load_critic,
    policy,
)
from valueguide.types import Observation

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
EVENTS = int(os.environ.get("EVENTS", "11"))
#: From the end of a fault to the robot's next motion: greeting again takes a second at the most, starting a
#: process some seconds, on a busy machine many.
RECOVERY_S = 60.0
#: As old as what a robot does may be: answered just before the deadline, and the last of its chunk.
OLDEST_S = TIMEOUT_S + EXECUTE * PERIOD_S


class System:
    """The processes, and what is done to them. Ends with all of them gone."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.versions: set[str] = set()
        self.logs: list[Path] = []
        self.started: list[StandIn] = []
        self.publisher = self._start("publish", str(root / "versions"))
        self.publisher.first_line()
        self.server = self._serve("*")
        self.port = self.server.lines[0].split()[0].rpartition(":")[2]
        self.proxy = LinkProxy(int(self.port))

    def __enter__(self) -> System:
        self.proxy.__enter__()
        self.robot = self._robot()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
        self.proxy.__exit__()

    def _start(self, *words: str) -> StandIn:
        process = StandIn(*words)
        self.started.append(process)
        return process

    def _serve(self, port: str) -> StandIn:
        server = self._start("serve", str(self.root / "versions"), port)
        server.first_line()
        return server

    def _robot(self) -> StandIn:
        self.logs.append(self.root / f"robot{len(self.logs)}.jsonl")
        endpoint = f"tcp://127.0.0.1:{self.proxy.port}"
        robot = self._start("robot", endpoint, str(self.logs[-1]), str(len(self.logs)))
        robot.first_line()
        return robot

    def lines(self, log: Path) -> list[dict[str, Any]]:
        """Of a robot's log; one that was killed may have been cut off in its last line."""
        text = log.read_text() if log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def moves_again(self) -> float:
        """Seconds until the robot does what it asked for after this call."""
        start = time.monotonic_ns()
        while not any(line.get("asked_ns", 0) > start for line in self.lines(self.logs[-1])[-50:]):
            assert self.robot.process.poll() is None, "the robot's process ended"
            assert time.monotonic_ns() - start < 1e9 * RECOVERY_S, self.lines(self.logs[-1])[-1]
            time.sleep(0.1)
        return (time.monotonic_ns() - start) * 1e-9

    # -- faults ----------------------------------------------------------------------------------

    def kill_server(self) -> None:
        self.server.kill()
        time.sleep(self.draw.uniform(0, 0.6))
        self.server = self._serve(self.port)

    def restart_server(self) -> None:
        """As `systemctl restart` does."""
        self.server.send(signal.SIGTERM)
        assert self.server.process.wait(30) == 0
        self.server = self._serve(self.port)

    def stop_server(self) -> None:
        self._stop(self.server, 1.5)

    def stop_robot(self) -> None:
        self._stop(self.robot, 1.5)

    def stop_robot_while_it_waits(self) -> None:
        """What the server answers meanwhile lies in the robot's socket when it goes on."""
        self.server.send(signal.SIGSTOP)
        time.sleep(3 * PERIOD_S)
        self.robot.send(signal.SIGSTOP)
        self.server.send(signal.SIGCONT)
        time.sleep(OLDEST_S + 0.5)
        self.robot.send(signal.SIGCONT)

    def kill_robot(self) -> None:
        self.robot.kill()
        self.robot = self._robot()

    def kill_publisher(self) -> None:
        self.publisher.kill()
        self.versions |= set(self.publisher.lines)
        self.publisher = self._start("publish", str(self.root / "versions"))
        time.sleep(self.draw.uniform(0, 0.5))

    def stop_publisher(self) -> None:
        self._stop(self.publisher, 0.5)

    def cut(self) -> None:
        self.proxy.cut()

    def freeze(self) -> None:
        self.proxy.freeze()
        time.sleep(self.draw.uniform(0, 2.0))
        self.proxy.thaw()

    def scrape_and_vanish(self) -> None:
        """Readers of the status page that end in the middle of a request or an answer."""
        port = int(self.server.lines[0].split()[1])
        for sent in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00\xff\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(sent)

    def _stop(self, process: StandIn, most_s: float) -> None:
        process.send(signal.SIGSTOP)
        time.sleep(self.draw.uniform(0, most_s))
        process.send(signal.SIGCONT)


FAULTS: tuple[Callable[[System], None], ...] = (
    System.kill_server,
    System.restart_server,
    System.stop_server,
    System.stop_robot,
    System.stop_robot_while_it_waits,
    System.kill_robot,
    System.kill_publisher,
    System.stop_publisher,
    System.cut,
    System.freeze,
    System.scrape_and_vanish,
)


def _check_what_robots_did(lines: list[dict[str, Any]], versions: set[str]) -> int:
    """Every decision is the right one, and nothing old runs; the number of decisions."""
    decisions = 0
    for line in lines:
        if "decision" in line:
            decisions += 1
            index, actions = _right(line["seed"], line["state"], guided=bool(line["critic"]))
            assert line["index"] == index and np.array_equal(np.float32(line["actions"]), actions)
            assert line["trip_s"] < TIMEOUT_S
            assert line["critic"] in versions, "a critic that was never published whole"
        elif "asked_ns" in line:
            age_s = line["at"] - line["asked_ns"] * 1e-9
            assert age_s < OLDEST_S + 0.05, f"{age_s:.2f} s old"
    return decisions


def _right(seed: int, state: list[float], guided: bool) -> tuple[int, np.ndarray]:
    """What the same models give in this process."""
    observation, proposer = Observation({}, np.float32(state), "reach"), policy()
    proposer.observe(observation)
    actions = proposer.sample(CANDIDATES, seed).actions
    index = int(np.argmax(FakeCritic().score(observation, actions).q.min(axis=0))) if guided else 0
    return index, actions[index]


def _run(root: Path, seed: int, events: int) -> None:
    with System(root, seed) as system:
        system.moves_again()
        order = system.draw.sample(FAULTS, len(FAULTS))
        slowest = 0.0
        for number in range(events):
            time.sleep(system.draw.uniform(0, 0.5))
            order[number % len(order)](system)
            slowest = max(slowest, system.moves_again())
        assert system.server.process.poll() is None and system.publisher.process.poll() is None
        for process in (system.robot, system.server, system.publisher):
            assert process.end() == 0
        system.versions |= {line for process in system.started for line in process.lines}
        decisions = sum(
            _check_what_robots_did(system.lines(log), system.versions | {""}) for log in system.logs
        )
        assert decisions >= events
        assert all(process.process.poll() is not None for process in system.started)
    left = CriticVersions(root / "versions", keep=3)
    for number in left.numbers():
        load_critic(left.folder(number))
    with left.draft() as draft:  # whoever publishes next clears away what the killed ones left behind
        pass
    assert not draft.exists() and not list((root / "versions" / "drafts").iterdir())
    print(f"{events} faults, {decisions} decisions, at the most {slowest:.1f} s until the robot moved again")


def test_whatever_is_killed_or_stopped_a_robot_does_the_right_thing_or_holds(tmp_path: Path) -> None:
    _run(tmp_path, 1, EVENTS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_other_orders_of_faults(tmp_path: Path, seed: int) -> None:
    _run(tmp_path, seed, 2 * EVENTS)
