"""Guided episodes over a link: as often successful as in process, with delay, with the server killed?

The suite's tasks are run through a real `valueguide serve` process. Every condition starts from the same
states, so that they can be compared in pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.bench.link_kills import Killer
from valueguide.evaluation.arms import ArmFactory, ArmSettings, sampling_seed
from valueguide.evaluation.linked import LinkedSettings, linked
from valueguide.evaluation.resume import finished_rows
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.suite import Suite
from valueguide.execution.executor import ExecutorSettings
from valueguide.execution.splice import gripper_dimensions, increments
from valueguide.robots.remote import RemotePilot
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.link_proxy import LinkFaults, LinkProxy
from valueguide.testing.serve_process import Serve
from valueguide.transport.link import ServerLink
from valueguide.transport.pending import LinkSettings
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import Episode

#: in_process: `Steerer`, simulated time stands still meanwhile. serve: the same over the socket. The others
#: in real time. ahead: the next chunk is asked for while one runs. delayed: so, through a slow network.
#: waiting: as slow, each chunk asked for when the last is used up; the arm holds meanwhile.
#: killed: SIGKILL at a random moment, and a new server at once; gone: no new one.
CONDITIONS = ("in_process", "serve", "ahead", "delayed", "waiting", "killed", "gone")
_DELAYED = ("delayed", "waiting")
_KILLS = ("killed", "gone")
_LONG_S = 60.0


@dataclass(frozen=True)
class LinkPlan:
    """Everything that defines the measurement. Episode j of every task and condition starts from seed + j.

    delay_s, jitter_s: each way. timeout_s: until when an answer must have come. lost_s: an episode without
    any answer for so long ends as truncated. stretch: so many seconds stand for one of the robot's, in
    control periods, delay, jitter and timeout alike, on a computer that others keep busy; only the models'
    own time does not grow. All times of rows are the robot's, but for those that a server takes to start.
    """

    suite: str
    tasks: tuple[str, ...]
    conditions: tuple[str, ...]
    episodes: int
    seed: int
    settings: ArmSettings
    delay_s: float = 0.05
    jitter_s: float = 0.02
    timeout_s: float = 0.5
    lost_s: float = 60.0
    stretch: float = 1.0

    def jobs(self) -> list[tuple[str, str, int]]:
        """(condition, task, episode), with all conditions of an episode next to each other."""
        return [(c, t, j) for j in range(self.episodes) for t in self.tasks for c in self.conditions]

    def to_json(self) -> dict[str, Any]:
        plan = json.loads(json.dumps(asdict(self)))
        del plan["settings"]["device"]
        return dict(plan)


def measure(
    plan: LinkPlan, suite: Suite, out: Path, on_episode: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict[str, Any]]:
    """One row per job of the plan, in the order of `plan.jobs()`, kept in `out/episodes.jsonl`.

    The same call continues what was interrupted, and may ask for more episodes, tasks or conditions. Raises
    ConfigError when `out` holds rows of another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / "episodes.jsonl"
    before = finished_rows(log, plan.to_json(), ("tasks", "conditions", "episodes"))
    rows = {(row["condition"], row["task"], row["episode"]): row for row in before}
    for job in plan.jobs():  # rows of other conditions may be there, too
        if job in rows:
            on_episode(rows[job])
    with Stand(plan, suite) as stand, log.open("a") as file:
        for job in plan.jobs():
            if job in rows:
                continue
            rows[job] = stand.run(*job)
            file.write(json.dumps(rows[job], allow_nan=False) + "\n")
            file.flush()
            on_episode(rows[job])
    return [rows[job] for job in plan.jobs()]


class Stand:
    """The models in process, a server with the same ones, and environments; each made when first needed."""

    def __init__(self, plan: LinkPlan, suite: Suite) -> None:
        self.plan, self.suite = plan, suite
        self._environments: dict[str, Any] = {}
        self._steerer: Any = None
        self._server: Serve | None = None

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            end(self._server)

    def run(self, condition: str, task: str, number: int) -> dict[str, Any]:
        """One episode as a JSON-serialisable row."""
        if task not in self._environments:
            self._environments[task] = self.suite.make(task)
        seed = self.plan.seed + number
        killer: Killer | None = None
        if condition == "in_process":
            episode = self._still(task, seed, self._local())
        elif condition == "serve":
            with self._link(_LONG_S) as link:
                episode = self._still(task, seed, self._remote(link))
        elif condition in _KILLS:
            rng = np.random.default_rng([seed, self.suite.tasks.index(task)])
            restart = self._start if condition == "killed" else None
            period_s = self._period_s
            planned_s = period_s * (self.plan.settings.execute + 1)
            killer = Killer(self._running(), rng, period_s, planned_s, restart)
            with killer, self._link(self._timeout_s) as link:
                episode = self._moving(task, seed, link, watch=killer.watch)
            self._server = killer.server
        else:
            with self._link(self._timeout_s, slow=condition in _DELAYED) as link:
                episode = self._moving(task, seed, link, prefetch=condition != "waiting")
        row = {"condition": condition, "task": task, "episode": number, **_row(episode, self.plan.stretch)}
        return row if killer is None else row | killer.facts(self.plan.timeout_s, self.plan.stretch)

    @property
    def _period_s(self) -> float:
        return self.plan.stretch / self.suite.fps

    @property
    def _timeout_s(self) -> float:
        return self.plan.stretch * self.plan.timeout_s

    # -- episodes --------------------------------------------------------------------------------

    def _still(self, task: str, seed: int, steerer: Any) -> Episode:
        return rollout(
            self._environments[task],
            steerer,
            seed,
            self.suite.max_steps,
            sampling_seed=sampling_seed(seed, task, self.suite.tasks),
        )

    def _moving(
        self, task: str, seed: int, link: ServerLink, prefetch: bool = True, **options: Any
    ) -> Episode:
        suite = self.suite
        limits = suite.action_low, suite.action_high
        settings = ExecutorSettings(self._period_s, self.plan.settings.execute, *limits, prefetch)
        kept = gripper_dimensions(suite.action_names)
        return linked(
            self._environments[task],
            RemotePilot(self._remote(link), settings, increments=increments(*limits, kept)),
            seed,
            LinkedSettings(suite.fps, suite.max_steps, self.plan.lost_s, kept, self.plan.stretch),
            sampling_seed=sampling_seed(seed, task, suite.tasks),
            **options,
        )

    # -- models ----------------------------------------------------------------------------------

    def _local(self) -> Any:
        if self._steerer is None:
            self._steerer = ArmFactory(self.suite, self.plan.settings, ("guided",)).build("guided")
        return self._steerer

    def _remote(self, link: ServerLink) -> RemoteSteerer:
        settings = self.plan.settings
        config = SteeringConfig(
            k=settings.k, beta=settings.beta, execute=settings.execute, aggregate=settings.aggregate
        )
        return RemoteSteerer(link, config, connect_s=_LONG_S)

    def _start(self, port: str = "*") -> Serve:
        settings = self.plan.settings
        return Serve(settings.critic, "--policy", settings.policy, "--k", str(settings.k), port=port)

    def _running(self) -> Serve:
        if self._server is None or self._server.process.poll() is not None:
            self._server = self._start()
        return self._server

    @contextlib.contextmanager
    def _link(self, timeout_s: float, slow: bool = False) -> Iterator[ServerLink]:
        """slow: through a network with the plan's delay and jitter."""
        with contextlib.ExitStack() as stack:
            endpoint = self._running().endpoint
            if slow:
                plan = self.plan
                delay_s, jitter_s = plan.stretch * plan.delay_s, plan.stretch * plan.jitter_s
                faults = LinkFaults(delay_s, jitter_s, seed=plan.seed)
                proxy = stack.enter_context(LinkProxy(int(endpoint.rpartition(":")[2]), faults))
                endpoint = f"tcp://127.0.0.1:{proxy.port}"
            settings = LinkSettings(endpoint, timeout_s=timeout_s, retry_s=0.5)
            yield stack.enter_context(ServerLink(settings))


def _row(episode: Episode, stretch: float) -> dict[str, Any]:
    last, facts = episode.steps[-1], episode.metadata
    row = {
        "seed": facts["seed"],
        "success": episode.success,
        "steps": len(episode.steps),
        "terminated": last.terminated,
        "truncated": last.truncated,
        "failure": facts["failure"],
        "decisions": facts["decisions"],
        "reasons": facts["reasons"],
        "actions": digest(episode),
    }
    for name in ("holds", "waited", "unused"):
        if name in facts:
            row[name] = facts[name]
    for name in ("round_trips_s", "slips_s"):
        if name in facts:
            row[name] = [seconds / stretch for seconds in facts[name]]
    return row


def digest(episode: Episode) -> str:
    """The same for two episodes exactly when every action of one is that of the other, bit for bit."""
    return hashlib.sha256(b"".join(step.action.tobytes() for step in episode.steps)).hexdigest()[:16]


def end(server: Serve) -> None:
    """Ends a server that may be dead already."""
    if server.process.poll() is None:
        server.process.kill()
    server.process.communicate()
