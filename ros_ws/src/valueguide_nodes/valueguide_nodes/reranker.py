"""Node `reranker`: scores the candidates that a node `policy` with `rerank: remote` proposes, picks one."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from valueguide_msgs.msg import ActionChunk as ChunkMessage
from valueguide_msgs.msg import Candidates as CandidatesMessage
from valueguide_msgs.msg import Decision

from valueguide import types
from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import LinkError
from valueguide.ros.messages import candidates_from, stamp_ns
from valueguide.ros.observe import ObservationBuilder
from valueguide.steering.decide import decide
from valueguide.steering.steer import SteeringConfig, rerank
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import ActionChunk, Candidates, Observation
from valueguide_nodes import convert, critic_slot, server
from valueguide_nodes.base import RELIABLE, Param, VgNode, run
from valueguide_nodes.critic_slot import NONE, CriticSlot, checkpoint
from valueguide_nodes.planner import Planner
from valueguide_nodes.shadow import Decided, ShadowScorer


class RerankerNode(VgNode):
    NAME = "reranker"
    PARAMETERS = (
        Param("critic", "", "critic folder; empty: the shipped one; none: candidate 0 runs"),
        Param("beta", 0.0, "softmax temperature; 0 takes the best", 0.0, 1e6),
        Param("execute", 4, "steps run, and scored, of each chunk", 1, 1000),
        Param("aggregate", "min", "over ensemble members: min, mean or lcb"),
        Param("deadline_s", 0.0, "decision time beyond which candidate 0 runs; 0: none", 0.0, 1e6),
        Param("shadow", False, "score and log, but run candidate 0"),
        Param("publish_chunk", True, "false: only score beside another re-ranker, for comparison"),
        Param("device", "cpu", "torch device"),
        *critic_slot.PARAMETERS,
        *server.PARAMETERS,
    )

    def setup(self) -> None:
        self.robot: RobotConfig = load_robot(self.param("robot"))
        away = bool(self.param("server"))
        path = NONE if away else checkpoint(self.param("critic"), "critic")
        self.slot = CriticSlot(self, self.robot, path, offered=not away)
        self.config = SteeringConfig(
            beta=self.param("beta"),
            execute=self.param("execute"),
            aggregate=self.param("aggregate"),
            deadline_s=self.param("deadline_s") or float("inf"),
        )
        cameras, privileged = self.slot.needs
        self.remote = server.remote_steerer(self, self.config) if away else None
        if self.remote is not None:
            cameras, privileged = server.needs(self.remote)
        builder = ObservationBuilder(self.robot, tuple(sorted(cameras)), privileged)
        self.decisions = self.create_publisher(Decision, "decision", RELIABLE)
        self.chunk_out = self.create_publisher(ChunkMessage, "chunk", RELIABLE)
        self.planner = Planner(self.robot, builder, self.work, self.failed)
        self.episode, self.chunks, self.critic_s = -1, 0, 0.0
        convert.subscribe_observation(self, self.robot, builder, cameras, privileged, self.received)
        self.create_subscription(CandidatesMessage, "candidates", self.guarded(self.on_candidates), RELIABLE)
        self.slot.begin(cameras, privileged)
        self.beside = ShadowScorer(self, self.slot)

    def received(self, role: str, message: Any) -> None:
        self.planner.push(role, message, self.now_ns())

    def on_candidates(self, message: CandidatesMessage) -> None:
        if message.mode != "base":  # the policy answers those itself
            self.planner.submit((message, time.monotonic()))

    def work(self, job: tuple[CandidatesMessage, float]) -> None:
        message, started = job
        if message.episode_id != self.episode:
            self.episode, self.chunks = message.episode_id, 0
        candidates, observation = candidates_from(message), None
        if self.slot.critic is not None or self.remote is not None:
            observation = self.planner.observation(message.instruction, stamp_ns(message))
            if observation is None or not self.active:
                return
        # The deadline counts from when the policy began to sample.
        began = started - message.policy_s
        if self.remote is not None and observation is not None:
            critic, decision = self.choose_there(self.remote, message, candidates, observation, began)
        else:
            critic, decision = self.slot.decide(
                lambda critic: self.choose(critic, message, candidates, observation, began)
            )
        self.critic_s = time.monotonic() - started
        version = critic.version if critic else ""
        if self.param("publish_chunk"):
            chunk = ActionChunk(candidates.actions[decision.index], self.chunks, self.config.execute)
            self.chunk_out.publish(convert.chunk_message(message, chunk, message.policy_version, version))
        took = self.critic_s + message.policy_s
        self.decisions.publish(
            convert.decision_message(message, decision, self.chunks, self.critic_s, took, version)
        )
        if observation is not None:
            self.slot.remember(observation, candidates)
            self.beside.submit(
                Decided(message, observation, candidates, self.config, message.seed, self.chunks, began)
            )
        self.chunks += 1

    def choose(
        self,
        critic: Any,
        message: CandidatesMessage,
        candidates: Candidates,
        observation: Observation | None,
        began: float,
    ) -> types.Decision:
        """The critic's choice; the policy's own candidate without one, or when one came only just now."""
        if critic is None or observation is None:
            return decide(None, elapsed_s=message.policy_s)
        config = replace(
            self.config,
            k=candidates.k,
            shadow=self.slot.shadow or message.mode == "shadow",
            spread_limit=critic.spread_limit,
        )
        return rerank(critic, observation, candidates, config, message.seed, began, time.monotonic)

    def choose_there(
        self,
        remote: RemoteSteerer,
        message: CandidatesMessage,
        candidates: Candidates,
        observation: Observation,
        began: float,
    ) -> tuple[Any, types.Decision]:
        """(critic, the server's choice); the policy's own candidate when no answer comes in time."""
        left_s = self.config.deadline_s - (time.monotonic() - began)
        try:
            if left_s <= 0:
                raise LinkError("the deadline passed before the server was asked")
            shadow = self.slot.shadow or message.mode == "shadow"
            remote.config = replace(self.config, k=candidates.k, shadow=shadow, deadline_s=left_s)
            remote.reset()
            remote.observe(observation)
            wait_s = min(left_s, self.param("server_timeout_s"))
            pending = remote.ask(message.seed, candidates=candidates, timeout_s=wait_s)
            decision = remote.take(pending)[2]
        except LinkError as error:
            self.planner.stale = str(error)
            decision = types.Decision(0, "deadline", latency_s=time.monotonic() - began)
        return remote.critic, decision

    def failed(self, error: Exception) -> None:
        self.get_logger().error(f"scoring: {type(error).__name__}: {error}")
        self.planner.stale = f"scoring failed: {error}"

    def stop(self) -> None:
        self.planner.close()
        self.beside.close()
        self.slot.close()
        if self.remote is not None:
            self.remote.link.close()

    def status(self) -> dict[str, Any]:
        return {
            **self.slot.status(),
            **self.beside.status(),
            "error": self.planner.stale,
            "critic_ms": round(1e3 * self.critic_s, 1),
        }


def main() -> None:
    run(RerankerNode)


if __name__ == "__main__":
    main()
