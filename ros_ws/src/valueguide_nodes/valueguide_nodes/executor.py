"""Node `executor`: one control step a period to the safety gate, chunks fetched ahead, takeovers honoured."""

from __future__ import annotations

from typing import Any

import numpy as np
from valueguide_msgs.msg import (
    ActionChunk,
    ChunkRequest,
    Command,
    ExecutorState,
    Heartbeat,
    InterventionState,
    SafetyState,
    Task,
)

from valueguide.config.robot import RobotConfig, load_robot
from valueguide.execution.executor import ChunkExecutor, ExecutorSettings, Motion, Request, State
from valueguide.ros.messages import chunk_from
from valueguide_nodes import convert
from valueguide_nodes.base import LATCHED, RELIABLE, Param, VgNode, run
from valueguide_nodes.help import HelpAsker


class ExecutorNode(VgNode):
    NAME = "executor"
    PARAMETERS = (
        Param("prefetch", True, "ask for the next chunk while this one runs"),
        Param("execute", 4, "steps run, and scored, of each chunk", 1, 1000),
        Param("slack_s", 0.02, "how much older than the request an observation may be", 0.0, 10.0),
        Param("repeat_s", 1.0, "ask again when the policy came back after this silence", 0.1, 60.0),
        Param("task_s", 1.0, "silence of the node task after which an episode is given up", 0.1, 60.0),
        Param("help", "", "help.json that says when to ask the operator for help; empty: never"),
    )

    def setup(self) -> None:
        self.robot: RobotConfig = load_robot(self.param("robot"))
        limits = self.robot.limits
        self.core = ChunkExecutor(
            ExecutorSettings(
                period_s=1.0 / self.robot.rate_hz,
                execute=self.param("execute"),
                low=np.array(limits.action_low, np.float32),
                high=np.array(limits.action_high, np.float32),
                prefetch=self.param("prefetch"),
            )
        )
        self.task = Task()
        self.requests, self.sequence = 0, 0
        self.rejected_seen, self.policy_heard, self.task_heard = -1, -np.inf, np.inf
        self.out = self.create_publisher(Command, "proposed_command", RELIABLE)
        self.asks = self.create_publisher(ChunkRequest, "chunk_request", RELIABLE)
        self.states = self.create_publisher(ExecutorState, "executor_state", RELIABLE)
        for kind, topic, callback, qos in (
            (Task, "task", self.on_task, LATCHED),
            (ActionChunk, "chunk", self.on_chunk, RELIABLE),
            (SafetyState, "safety_state", self.on_safety, LATCHED),
            (InterventionState, "intervention", self.on_intervention, LATCHED),
            (Command, "teleop_command", self.on_human, RELIABLE),
            (Heartbeat, "heartbeat", self.on_heartbeat, RELIABLE),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), qos)
        self.help = HelpAsker(self, self.param("help"))
        self.timer = self.create_timer(1.0 / self.robot.rate_hz, self.guarded(self.tick))

    def tick(self) -> None:
        """One control period begins."""
        if self.task.active and self.monotonic() - self.task_heard > self.param("task_s"):
            self.end("lost: task")
        motion, request = self.core.tick(self.monotonic())
        if motion is not None:
            self.send(motion)
        if request is not None:
            self.ask(request)
        self.tell()

    def send(self, motion: Motion) -> None:
        self.sequence += 1
        self.out.publish(
            convert.command(
                self,
                self.robot,
                Command.MOVE,
                motion.values,
                source=motion.source,
                sequence=self.sequence,
                chunk_id=motion.chunk_id,
                chunk_step=motion.chunk_step,
            )
        )

    def hold(self, reason: str) -> None:
        self.sequence += 1
        self.out.publish(
            convert.command(self, self.robot, Command.HOLD, sequence=self.sequence, reason=reason)
        )

    def ask(self, request: Request) -> None:
        # The same noise for the same decision of an episode as in `valueguide eval`.
        seed = int(np.random.default_rng([int(self.task.seed), self.requests]).integers(2**31))
        self.requests += 1
        slack = 0 if request.committed.size == 0 else round(1e9 * self.param("slack_s"))
        message = ChunkRequest(
            request_id=request.request_id,
            episode_id=self.task.episode_id,
            instruction=self.task.instruction,
            mode=self.task.mode,
            reset=request.reset,
            not_before=convert.to_time(max(0, self.now_ns() - slack)),
            action_dim=len(self.robot.action.names),
            committed=convert.floats(request.committed),
            seed=seed,
        )
        message.header.stamp = self.stamp()
        self.asks.publish(message)
        # The first committed step goes out with the request, after the observation that will be used.
        self.help.planning(request.request_id, self.core.counters.steps - int(request.committed.size > 0))

    def on_task(self, task: Task) -> None:
        starting = task.active and (not self.task.active or task.episode_id != self.task.episode_id)
        ending = not task.active and self.task.active
        self.task = task
        if starting:
            self.requests = 0
            self.core.start()
            self.help.begin(task)
            self.tick_now()
        elif ending:
            self.end("episode finished")

    def end(self, reason: str) -> None:
        """Nothing more of this episode is sent, but for one hold."""
        self.task.active = False
        self.help.end()
        if self.core.state is not State.STOPPED:
            self.core.finish()
            self.hold(reason)

    def on_chunk(self, message: ActionChunk) -> None:
        if message.episode_id != self.task.episode_id:
            return
        waiting = self.core.state is State.WAITING
        taken = self.core.on_chunk(chunk_from(message), message.request_id, message.start, self.monotonic())
        if taken and waiting:
            self.tick_now()

    def tick_now(self) -> None:
        """The arm stands still: begin the next period now rather than at the old beat."""
        self.timer.reset()
        self.tick()

    def on_safety(self, state: SafetyState) -> None:
        if state.state == SafetyState.STOPPED:
            self.core.stop()
            return
        self.core.unlatch()
        if state.rejected_sequence > self.rejected_seen:
            if self.rejected_seen >= 0 or state.rejected_sequence <= self.sequence:
                self.core.refused()
            self.rejected_seen = state.rejected_sequence

    def on_intervention(self, state: InterventionState) -> None:
        if state.active:
            self.core.take_over()
            self.help.taken_over()
            return
        commanded = self.core.state is State.HUMAN
        self.core.hand_back()
        if commanded:
            self.help.handed_back(self.core.counters.steps)
            self.tick_now()

    def on_human(self, message: Command) -> None:
        if self.core.state is not State.HUMAN:
            return
        if message.kind == Command.MOVE:
            self.core.on_human(np.asarray(message.values, np.float32), self.monotonic())
        else:
            self.core.on_human_hold()
            self.hold(message.reason)

    def on_heartbeat(self, message: Heartbeat) -> None:
        if message.node == "task":
            self.task_heard = self.monotonic()
        if message.node in ("policy", "reranker"):
            now = self.monotonic()
            if now - self.policy_heard > self.param("repeat_s"):
                self.core.retry()  # it restarted: whatever it was asked is lost
            self.policy_heard = now

    def tell(self) -> None:
        counters = self.core.counters
        message = ExecutorState(
            state=str(self.core.state),
            commander=self.core.commander,
            delay_s=self.core.delay.seconds,
            delay_steps=self.core.delay.steps(1.0 / self.robot.rate_hz, max(1, self.param("execute") - 1)),
            steps=counters.steps,
            holds=counters.holds,
            late=counters.late,
            dropped=counters.dropped,
        )
        message.header.stamp = self.stamp()
        self.states.publish(message)

    def stop(self) -> None:
        self.core.finish()
        self.hold("executor stopped")

    def status(self) -> dict[str, Any]:
        counters = self.core.counters
        return {
            "state": self.core.state,
            "commander": self.core.commander,
            "delay_ms": round(1e3 * self.core.delay.seconds),
            "late": counters.late,
            "warning": "chunks come late" if counters.late > 3 else "",
            **self.help.status(),
        }


def main() -> None:
    run(ExecutorNode)


if __name__ == "__main__":
    main()
