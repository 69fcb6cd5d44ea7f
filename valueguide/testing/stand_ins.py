"""The processes of a served system without models, for tests that kill and stop them.

    python -m valueguide.testing.stand_ins serve VERSIONS PORT       # prints where it listens
    python -m valueguide.testing.stand_ins robot ENDPOINT LOG SEED   # a point that goes to and fro
    python -m valueguide.testing.stand_ins publish VERSIONS          # a critic after another, each promoted

The server, its keeper and its pages are the real ones; the policy is `FakePolicy`, and a critic's folder is
read and checked as a real one is, to become a `FakeCritic` of that version. All end when their standard
input is closed, so that nothing outlives a test.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.critics.manifest import CONFIG, FORMAT, MANIFEST, WEIGHTS, digest, read_manifest, sha256
from valueguide.execution.executor import ExecutorSettings
from valueguide.online.versions import CRITICS, CriticVersions
from valueguide.robots.remote import Planned, RemotePilot
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy
from valueguide.testing.input_end import input_closed
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest
from valueguide.transport.pending import LinkSettings, Pending
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import Observation

#: Of the robot: control period and until when an answer must have come, seconds; steps of a chunk that run.
PERIOD_S, TIMEOUT_S, EXECUTE, CANDIDATES = 0.05, 0.5, 4, 4
LIMIT = np.array([0.2], np.float32)
_SIZE = 200_000


class StandIn:
    """One of them in a process. lines: what it printed so far."""

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        self.words = words
        self.process = subprocess.Popen(
            [sys.executable, "-m", "valueguide.testing.stand_ins", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )
        self.lines: list[str] = []
        self._news = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or []:
            self.lines.append(line.strip())
            self._news.set()
        self._news.set()

    def first_line(self, wait_s: float = 120.0) -> str:
        """Once it has said something: it works. Raises TimeoutError, also when it has ended before."""
        if not self._news.wait(wait_s) or not self.lines:
            raise TimeoutError(f"{self.words[0]}: said nothing, exit status {self.process.poll()}")
        return self.lines[0]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, wait_s: float = 30.0) -> int:
        """Closes its input; the exit status. Raises TimeoutExpired when it does not end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            return self.process.wait(wait_s)
        finally:
            self.kill()


def policy() -> FakePolicy:
    """The one that the stand-in server serves."""
    return FakePolicy()


def load_critic(path: str | Path) -> FakeCritic:
    """Raises CheckpointError for a folder that is not whole by its hashes."""
    critic = FakeCritic()
    critic.version = str(read_manifest(Path(path))["version"])
    return critic


def write_critic(folder: Path, number: int) -> str:
    """A folder that is whole by its hashes, with weights that go by the number; returns the version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(number.to_bytes(8, "little") * (_SIZE // 8))
    (folder / CONFIG).write_text(f"number: {number}\n")
    files = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}
    facts = {"format": FORMAT, "version": digest(files)[:12], "files": files, "normalizers": {}}
    (folder / MANIFEST).write_text(json.dumps({**facts, "instructions": [], "step": number}))
    return str(facts["version"])


def publish(root: str, ended: threading.Event) -> None:
    """Versions, one a line, each before it serves."""
    versions, number = CriticVersions(root, keep=3), time.monotonic_ns()
    while not ended.is_set():
        number += 1
        with versions.draft() as draft:
            version = write_critic(draft, number)
            made = versions.publish(draft)
        print(version, flush=True)
        versions.promote(made)
        ended.wait(0.1)


def serve(root: str, port: str, ended: threading.Event) -> None:
    """Until the input is closed or SIGTERM. Prints endpoint and status port.

    HEADROOM_MB in the environment: so much memory may it take beyond what it has when it begins to serve.
    """
    from valueguide.serving.engine import Engine, Models
    from valueguide.serving.keeper import Keeper, KeeperThread
    from valueguide.serving.metrics import Metrics, StatusPage
    from valueguide.serving.server import Server, ServerSettings

    (Path(root) / CRITICS).mkdir(parents=True, exist_ok=True)
    metrics, engine = Metrics(), Engine(Models(policy()))
    keeper = Keeper(engine, "", root, lambda path: policy(), load_critic, lambda model, models: None)
    keeper.begin()
    server = Server(engine, ServerSettings(f"tcp://127.0.0.1:{port}", idle_s=2.0), metrics)
    page = StatusPage(0, metrics, lambda: server.health() | {"troubles": keeper.troubles})
    watch = KeeperThread(keeper.poll, 0.05)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())

    def stop() -> None:
        ended.wait()
        server.stop()

    threading.Thread(target=stop, daemon=True).start()
    if headroom := os.environ.get("HEADROOM_MB"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(headroom) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(f"{server.endpoint} {page.port}", flush=True)
    server.run()
    watch.close()
    page.close()


def robot(endpoint: str, log: str, seed: str, ended: threading.Event) -> None:
    """One JSON line a control period into `log`: "at", "wall" (seconds of both clocks), "held", and what
    moved: "chunk", "asked_ns". One a decision: "seed", "state", "index", "actions", "critic", "trip_s"."""
    settings = LinkSettings(endpoint, timeout_s=TIMEOUT_S, ping_s=0.2, silent_s=1.0, retry_s=0.3)
    with ServerLink(settings) as link, Path(log).open("a") as file:

        def say(what: dict[str, Any]) -> None:
            file.write(json.dumps(what) + "\n")
            file.flush()

        def decided(planned: Planned) -> None:
            asked[planned.chunk_id] = states.pop(planned.chunk.stamp_ns), planned.chunk.stamp_ns
            say(
                {
                    "decision": planned.chunk_id,
                    "seed": seeds[planned.chunk.stamp_ns],
                    "state": asked[planned.chunk_id][0],
                    "index": planned.decision.index,
                    "actions": planned.chunk.actions.tolist(),
                    "critic": pilot.steerer.critic.version if pilot.steerer.critic else "",
                    "trip_s": planned.round_trip_s,
                }
            )

        steerer = RemoteSteerer(link, SteeringConfig(k=CANDIDATES, execute=EXECUTE), connect_s=120.0)
        executor = ExecutorSettings(PERIOD_S, EXECUTE, -LIMIT, LIMIT, prefetch=False)
        pilot = RemotePilot(steerer, executor, on_planned=decided)
        pilot.start(int(seed))
        states: dict[int, list[float]] = {}
        seeds: dict[int, int] = {}
        ask = link.ask

        def remembered(request: DecideRequest, timeout_s: float | None = None) -> Pending:
            seeds[request.window[-1].stamp_ns] = request.seed
            return ask(request, timeout_s)

        link.ask = remembered  # type: ignore[method-assign]
        asked: dict[int, tuple[list[float], int]] = {}
        at, goal = 0.0, 1.0
        print("asks", flush=True)
        while not ended.is_set():
            now = time.monotonic()
            goal = -goal if abs(at - goal) < 0.1 else goal
            observation = Observation({}, np.array([at, goal], np.float32), "reach", time.monotonic_ns())
            states[observation.stamp_ns] = [float(value) for value in observation.state]
            motion = pilot.step(observation)
            line: dict[str, Any] = {"at": now, "wall": time.time(), "held": motion is None}
            if motion is not None:
                at += float(motion.values[0])
                line |= {"chunk": motion.chunk_id, "asked_ns": asked[motion.chunk_id][1]}
            offset = link.clock.offset_ns
            say(
                {**line, "offset_ns": offset, "sessions": link.counters.connections, "trouble": pilot.trouble}
            )
            time.sleep(PERIOD_S)
        pilot.stop()


def main() -> None:
    """See the module."""
    work = {"serve": serve, "robot": robot, "publish": publish}[sys.argv[1]]
    work(*sys.argv[2:], input_closed())  # type: ignore[arg-type, operator]


if __name__ == "__main__":
    main()
