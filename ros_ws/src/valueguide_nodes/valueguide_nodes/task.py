"""Node `task`: the action `execute_task`. Starts an episode, watches it, and says how it ended and why."""

from __future__ import annotations

import math
from typing import Any

import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from std_srvs.srv import Trigger
from valueguide_msgs.action import ExecuteTask
from valueguide_msgs.msg import (
    Decision,
    ExecutorState,
    Heartbeat,
    InterventionState,
    Progress,
    SafetyState,
    Task,
)
from valueguide_msgs.srv import SetMode

from valueguide.config.robot import RobotConfig, load_robot
from valueguide_nodes.base import LATCHED, RELIABLE, Param, VgNode, run

MODES = ("guided", "base", "shadow")
_WATCH_HZ = 20.0
#: Nodes without which an episode cannot go on.
_NEEDED = ("policy", "executor", "safety_gate")


class TaskNode(VgNode):
    NAME = "task"
    PARAMETERS = (
        Param("mode", "guided", "guided, base or shadow, for goals that do not say"),
        Param("lost_s", 3.0, "silence of policy, executor or gate that ends an episode", 0.1, 600.0),
        Param("decision_s", 10.0, "time without a decision that ends an episode", 0.1, 3600.0),
        Param("first_episode", 0, "number of the first episode", 0, 2**31 - 1),
    )

    def setup(self) -> None:
        self.robot: RobotConfig = load_robot(self.param("robot"))
        self.mode = self.param("mode")
        self.next_episode = self.param("first_episode")
        self.task = Task()
        self.ended: Future | None = None
        self.progress, self.safety, self.executor_state = (
            Progress(value=math.nan),
            SafetyState(),
            ExecutorState(),
        )
        self.beats: dict[str, float] = {}
        self.decisions, self.decided_at, self.takeovers = 0, 0.0, 0
        self.tasks = self.create_publisher(Task, "task", LATCHED)
        for kind, topic, callback, qos in (
            (Progress, "progress", self.on_progress, RELIABLE),
            (SafetyState, "safety_state", self.on_safety, LATCHED),
            (ExecutorState, "executor_state", self.on_executor, RELIABLE),
            (Decision, "decision", self.on_decision, RELIABLE),
            (InterventionState, "intervention", self.on_intervention, LATCHED),
            (Heartbeat, "heartbeat", self.on_heartbeat, RELIABLE),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), qos)
        self.create_service(SetMode, "set_mode", self.on_mode)
        self.create_service(Trigger, "mark_success", lambda q, r: self.on_mark(True, r))
        self.create_service(Trigger, "mark_failure", lambda q, r: self.on_mark(False, r))
        self.server = ActionServer(
            self,
            ExecuteTask,
            "execute_task",
            execute_callback=self.execute,
            goal_callback=self.on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.create_timer(1.0 / _WATCH_HZ, self.guarded(self.watch), clock=steady)

    # The action.

    def on_goal(self, goal: Any) -> GoalResponse:
        refusal = ""
        if not self.active:
            refusal = "the node task is not active"
        elif self.task.active:
            refusal = f"episode {self.task.episode_id} is still running"
        elif self.safety.state == SafetyState.STOPPED:
            refusal = f"the safety gate is stopped: {self.safety.reason}"
        elif not goal.instruction.strip():
            refusal = "the instruction is empty"
        elif goal.mode and goal.mode not in MODES:
            refusal = f"mode: expected one of {', '.join(MODES)}, found {goal.mode!r}"
        if refusal:
            self.get_logger().warning(f"goal refused: {refusal}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    async def execute(self, handle: Any) -> ExecuteTask.Result:
        goal = handle.request
        self.goal, self.limit_s = handle, goal.time_limit_s or self.robot.time_limit_s
        self.decisions, self.takeovers, self.decided_at = 0, 0, self.monotonic()
        self.progress = Progress(value=math.nan)
        self.started_ns, self.feedback_at = self.now_ns(), 0.0
        self.ended = Future()
        self.task = Task(
            active=True,
            episode_id=self.next_episode,
            instruction=goal.instruction,
            mode=goal.mode or self.mode,
            seed=goal.seed,
        )
        self.next_episode += 1
        self.publish_task()
        self.get_logger().info(f"episode {self.task.episode_id} ({self.task.mode}): {goal.instruction}")
        success, truncated, reason = await self.ended
        seconds = (self.now_ns() - self.started_ns) / 1e9
        self.ended = None
        self.task.active, self.task.finished = False, True
        self.task.success, self.task.truncated, self.task.reason = success, truncated, reason
        self.publish_task()
        self.get_logger().info(f"episode {self.task.episode_id}: {reason} after {seconds:.1f} s")
        if reason == "canceled":
            handle.canceled()
        else:
            handle.succeed() if success else handle.abort()
        return ExecuteTask.Result(
            success=success,
            reason=reason,
            episode_id=self.task.episode_id,
            decisions=self.decisions,
            takeovers=self.takeovers,
            duration_s=seconds,
        )

    def end(self, success: bool, truncated: bool, reason: str) -> None:
        """The first reason counts."""
        if self.ended is not None and not self.ended.done():
            self.ended.set_result((success, truncated, reason))

    def publish_task(self) -> None:
        self.task.header.stamp = self.stamp()
        self.tasks.publish(self.task)

    def watch(self) -> None:
        """Everything that ends an episode from outside the task itself."""
        if self.ended is None:
            return
        now = self.monotonic()
        if self.goal.is_cancel_requested:
            self.end(False, True, "canceled")
        elif (self.now_ns() - self.started_ns) / 1e9 > self.limit_s:
            self.end(False, True, "time_limit")
        for node in _NEEDED:
            silence = now - self.beats.get(node, self.decided_at)
            if silence > self.param("lost_s"):
                self.end(False, True, f"lost: {node}, silent for {silence:.1f} s")
        idle = self.executor_state.commander != "human" and now - self.decided_at > self.param("decision_s")
        if idle:
            self.end(False, True, f"lost: no decision for {now - self.decided_at:.1f} s")
        if now - self.feedback_at > 0.5:
            self.feedback_at = now
            self.goal.publish_feedback(
                ExecuteTask.Feedback(
                    progress=self.progress.value,
                    decisions=self.decisions,
                    commander=self.executor_state.commander,
                    safety=self.safety.reason,
                )
            )

    # What it hears.

    def on_progress(self, message: Progress) -> None:
        # What was seen before the episode began says nothing about it.
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if self.ended is None or stamp < self.started_ns:
            return
        self.progress = message
        if message.success:
            self.end(True, False, "success")
        elif message.failure:
            self.end(False, False, f"failure: {message.detail or 'reported by progress'}")

    def on_safety(self, message: SafetyState) -> None:
        self.safety = message
        if message.state == SafetyState.STOPPED:
            self.end(False, True, f"stopped: {message.reason}")

    def on_executor(self, message: ExecutorState) -> None:
        self.executor_state = message
        if message.commander == "human":
            self.decided_at = self.monotonic()  # the policy has nothing to decide meanwhile

    def on_decision(self, message: Decision) -> None:
        if message.episode_id == self.task.episode_id:
            self.decisions += 1
            self.decided_at = self.monotonic()

    def on_intervention(self, message: InterventionState) -> None:
        self.takeovers = int(message.takeovers)

    def on_heartbeat(self, message: Heartbeat) -> None:
        self.beats[message.node] = self.monotonic()

    def on_mode(self, request: Any, response: Any) -> Any:
        response.success = request.mode in MODES
        response.message = f"expected one of {', '.join(MODES)}, found {request.mode!r}"
        if response.success:
            self.mode, response.message = request.mode, f"{request.mode} from the next episode on"
        return response

    def on_mark(self, success: bool, response: Any) -> Any:
        response.success = self.ended is not None
        response.message = "marked" if response.success else "no episode is running"
        self.end(success, False, "success" if success else "failure: marked by the operator")
        return response

    def stop(self) -> None:
        self.end(False, True, "lost: the node task stopped")
        if self.task.active:
            self.task.active, self.task.finished, self.task.truncated = False, True, True
            self.task.reason = "lost: the node task stopped"
            self.publish_task()

    def status(self) -> dict[str, Any]:
        return {
            "episode": self.task.episode_id,
            "running": self.task.active,
            "instruction": self.task.instruction,
            "last": self.task.reason,
        }


def main() -> None:
    run(TaskNode)


if __name__ == "__main__":
    main()
