"""Node `policy`: K candidates of the frozen policy for every request, scored unless `rerank` is remote."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from valueguide_msgs.msg import ActionChunk, ChunkRequest, Command, Decision
from valueguide_msgs.msg import Candidates as CandidatesMessage

from valueguide import types
from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import ConfigError, LinkError, mismatch
from valueguide.execution.splice import splice
from valueguide.ros.messages import array_from
from valueguide.ros.observe import ObservationBuilder
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.transport.remote_mapping import RobotFacts
from valueguide.transport.remote_policy import connect_policy, is_remote
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import Candidates, Observation
from valueguide_nodes import convert, critic_slot, server
from valueguide_nodes.base import RELIABLE, Param, VgNode, run
from valueguide_nodes.critic_slot import NONE, CriticSlot, checkpoint
from valueguide_nodes.planner import Planner
from valueguide_nodes.shadow import Decided, ShadowScorer

#: Seconds before a server that gave no answer is asked again.
_AGAIN_S = 0.1


class PolicyNode(VgNode):
    NAME = "policy"
    PARAMETERS = (
        Param(
            "policy",
            "",
            "LeRobot policy: folder or hub id, or openpi:// or groot:// server; empty: the shipped one",
        ),
        Param("critic", "", "critic folder; empty: the shipped one; none: no critic"),
        Param("rerank", "inline", "inline: score here; remote: leave it to the node reranker"),
        Param("k", 16, "candidates per decision", 1, 1024),
        Param("beta", 0.0, "softmax temperature; 0 takes the best", 0.0, 1e6),
        Param("execute", 4, "steps run, and scored, of each chunk", 1, 1000),
        Param("aggregate", "min", "over ensemble members: min, mean or lcb"),
        Param("deadline_s", 0.0, "decision time beyond which candidate 0 runs; 0: none", 0.0, 1e6),
        Param("shadow", False, "score and log, but run candidate 0"),
        Param("device", "cpu", "torch device"),
        *critic_slot.PARAMETERS,
        *server.PARAMETERS,
    )

    def setup(self) -> None:
        if self.param("rerank") not in ("inline", "remote"):
            raise ConfigError(mismatch("policy", "rerank", "inline or remote", self.param("rerank")))
        self.robot: RobotConfig = load_robot(self.param("robot"))
        self.inline = self.param("rerank") == "inline"
        scores = self.inline and not self.param("server")
        path = checkpoint(self.param("critic"), "critic") if scores else NONE
        self.slot = CriticSlot(self, self.robot, path, offered=scores)
        self.config = SteeringConfig(
            k=self.param("k"),
            beta=self.param("beta"),
            execute=self.param("execute"),
            aggregate=self.param("aggregate"),
            deadline_s=self.param("deadline_s") or float("inf"),
        )
        cameras, privileged = self.slot.needs
        self.steerer: Steerer | RemoteSteerer
        if self.param("server"):
            self.steerer = server.remote_steerer(self, self.config, guided=self.inline)
            check_policy(self.steerer.policy, self.robot)
            cameras, privileged = server.needs(self.steerer)
        else:
            self.steerer = self.local_steerer()
        policy = self.steerer.policy
        cameras |= set(policy.cameras)
        privileged |= policy.needs_environment_state
        builder = ObservationBuilder(self.robot, tuple(sorted(cameras)), privileged)
        self.last_observed = 0
        self.episode, self.chunks = -1, 0
        self.candidates_out = self.create_publisher(CandidatesMessage, "candidates", RELIABLE)
        self.decisions = self.create_publisher(Decision, "decision", RELIABLE)
        self.chunk_out = self.create_publisher(ActionChunk, "chunk", RELIABLE)
        self.planner = Planner(self.robot, builder, self.work, self.failed)
        convert.subscribe_observation(self, self.robot, builder, cameras, privileged, self.received)
        self.create_subscription(ChunkRequest, "chunk_request", self.guarded(self.planner.submit), RELIABLE)
        self.slot.begin(cameras, privileged)
        self.beside = ShadowScorer(self, self.slot)

    def local_steerer(self) -> Steerer:
        """Policy and critic in this process."""
        policy = proposer(checkpoint(self.param("policy"), "policy"), self.robot, self.param("device"))
        check_policy(policy, self.robot)
        # The first pass allocates: not to be paid for by a waiting arm.
        policy.warm_up(self.config.k)
        return Steerer(policy, self.slot.critic, self.config)

    def received(self, role: str, message: Any) -> None:
        self.planner.push(role, message, self.now_ns())
        history = getattr(self.steerer.policy, "history", 1)
        if role == "command" and message.kind == Command.MOVE and history > 1:
            self.planner.submit(("observe", message))

    def work(self, job: Any) -> None:
        """In the planner's thread: one request, or one control step for a policy with a memory."""
        if isinstance(job, tuple):
            observation = self.planner.latest("")
            if observation is not None:
                self.observe(replace(observation, task=self.task))
            return
        started = time.monotonic()
        self.task = job.instruction
        not_before = job.not_before.sec * 1_000_000_000 + job.not_before.nanosec
        observation = self.planner.observation(job.instruction, not_before)
        if observation is None or not self.active:
            return
        if job.reset or job.episode_id != self.episode:
            self.steerer.reset()
            self.episode, self.chunks, self.last_observed = job.episode_id, 0, 0
        self.observe(observation, always=True)
        try:
            self.answer(job, observation, started)
        except LinkError as error:  # the arm holds until a later question is answered
            self.planner.stale = str(error)
            self.planner.again(job, _AGAIN_S)

    task = ""

    def observe(self, observation: Observation, always: bool = False) -> None:
        """Once a control step, however often pictures come."""
        if always or observation.stamp_ns - self.last_observed > 0.5e9 / self.robot.rate_hz:
            self.steerer.observe(observation)
            self.last_observed = observation.stamp_ns

    def answer(self, request: ChunkRequest, observation: Observation, started: float) -> None:
        """Sample, put the committed actions first, choose, and publish what came of it."""
        base = request.mode == "base"
        count = len(request.committed) // max(1, request.action_dim)
        committed = array_from(request.committed, count, request.action_dim, what="committed actions")
        critic, (chunk, candidates, decision) = self.plan(request, committed)
        proposal = convert.candidates_message(
            request,
            candidates,
            observation.stamp_ns,
            count,
            self.steerer.timing.policy_s,
            self.steerer.policy.version,
        )
        self.candidates_out.publish(proposal)
        if not self.inline and not base:
            return
        version = critic.version if critic else ""
        chunk = replace(chunk, chunk_id=self.chunks)
        self.chunks += 1
        if base:
            decision = replace(decision, reason="base")
        latency = time.monotonic() - started
        self.chunk_out.publish(convert.chunk_message(proposal, chunk, self.steerer.policy.version, version))
        self.decisions.publish(
            convert.decision_message(
                proposal, decision, chunk.chunk_id, self.steerer.timing.critic_s, latency, version
            )
        )
        if not base:
            self.slot.remember(observation, candidates)
            index = chunk.chunk_id
            self.beside.submit(
                Decided(proposal, observation, candidates, self.config, request.seed, index, started)
            )

    def plan(
        self, request: ChunkRequest, committed: types.Float32
    ) -> tuple[Any, tuple[types.ActionChunk, Candidates, types.Decision]]:
        """(critic or None, what came of it). Raises LinkError when a server does not answer."""
        base, steerer = request.mode == "base", self.steerer
        absolute, adds = self.robot.action.kind == "joint_position", self.robot.increments
        shadow = self.slot.shadow or request.mode == "shadow"
        config = replace(self.config, k=1 if base else self.config.k, shadow=shadow)
        if isinstance(steerer, RemoteSteerer):
            steerer.config, steerer.guided = config, self.inline and not base
            made = steerer.plan(request.seed, committed=committed, absolute=absolute, increments=adds)
            return (steerer.critic if steerer.guided else None), made

        steerer.config = config
        candidates = steerer.propose(
            request.seed, lambda c: splice(c, committed, absolute=absolute, increments=adds)
        )

        def by(critic: Any) -> tuple[types.ActionChunk, types.Decision]:
            steerer.critic = critic
            steerer.config = replace(config, spread_limit=critic.spread_limit if critic else None)
            return steerer.choose(candidates, request.seed)

        critic, (chunk, decision) = (None, by(None)) if base else self.slot.decide(by)
        return critic, (chunk, candidates, decision)

    def failed(self, error: Exception) -> None:
        self.get_logger().error(f"planning: {type(error).__name__}: {error}")
        self.planner.stale = f"planning failed: {error}"

    def stop(self) -> None:
        self.planner.close()
        self.beside.close()
        self.slot.close()
        if isinstance(self.steerer, RemoteSteerer):
            self.steerer.link.close()

    def status(self) -> dict[str, Any]:
        timing = self.steerer.timing
        return {
            **self.slot.status(),
            **self.beside.status(),
            "error": self.planner.stale,
            "policy_ms": round(1e3 * timing.policy_s, 1),
            "critic_ms": round(1e3 * timing.critic_s, 1),
            "decisions": self.chunks,
        }


def proposer(name: str, robot: RobotConfig, device: str) -> Any:
    """A LeRobot policy, or the client of somebody else's policy server (no torch here then)."""
    if is_remote(name):
        facts = RobotFacts(
            action_names=robot.action.names,
            state_size=len(robot.state),
            cameras={camera: (spec.height, spec.width) for camera, spec in robot.cameras.items()},
            environment_state_size=None if robot.environment_state_topic else 0,
            rate_hz=robot.rate_hz,
        )
        return connect_policy(name, facts)
    from valueguide.policies.load import load_policy

    return load_policy(name, device)


def check_policy(policy: Any, robot: RobotConfig) -> None:
    """Raises ConfigError naming what of the policy does not fit the robot's description."""
    where = f"robot {robot.name}"
    if policy.action_dim != len(robot.action.names):
        raise ConfigError(mismatch(where, "actions", f"the policy's {policy.action_dim}", robot.action.names))
    for name, (height, width) in policy.cameras.items():
        camera = robot.cameras.get(name)
        if camera is None:
            raise ConfigError(mismatch(where, "cameras", f"the policy's {name!r}", sorted(robot.cameras)))
        if (camera.height or height, camera.width or width) != (height, width):
            raise ConfigError(
                mismatch(
                    where,
                    f"camera {name}",
                    f"the policy's {width}x{height}",
                    f"{camera.width}x{camera.height}",
                )
            )


def main() -> None:
    run(PolicyNode)


if __name__ == "__main__":
    main()
