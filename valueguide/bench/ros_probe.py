"""The measuring side of `valueguide bench ros`, in the ROS environment: publishes, listens, keeps the time.

Run by `valueguide.bench.ros`; prints one JSON line. Times are monotonic, in milliseconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_PATIENCE_S = 120.0
#: From a step's command to the simulator's word on what it led to: a control period, and some more.
_LAST_STEP_S = 0.15


class Probe:
    """A node that is spun only inside its own waiting calls."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        rclpy.init()
        self.node = rclpy.create_node("bench_probe")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def until(self, condition: Callable[[], Any], what: str, timeout: float = _PATIENCE_S) -> Any:
        """What `condition` gives once it is true. Raises TimeoutError, which names `what`, after seconds."""
        limit = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > limit:
                raise TimeoutError(f"no {what} within {timeout:.0f} s")
            self._executor.spin_once(timeout_sec=0.05)
        return found

    def spin(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self._executor.spin_once(timeout_sec=0.05)

    def listen(self, topic: str, kind: Any, qos: Any = 50) -> list[tuple[float, Any]]:
        """Messages with the time of their arrival."""
        heard: list[tuple[float, Any]] = []
        self.node.create_subscription(kind, topic, lambda m: heard.append((time.monotonic(), m)), qos)
        return heard

    def call(self, service: str, kind: Any, request: Any = None) -> Any:
        """The service's answer. Raises TimeoutError when there is no such service, or no answer."""
        client: Any = self.node.create_client(kind, service)
        self.until(client.service_is_ready, f"service {service}")
        future = client.call_async(request or kind.Request())
        self.until(future.done, f"answer of {service}")
        return future.result()


def spread(seconds: list[float]) -> dict[str, Any]:
    """p50, p99 and largest in milliseconds, and how many."""
    values = 1e3 * np.array(seconds)
    return {
        "p50_ms": round(float(np.quantile(values, 0.5)), 3),
        "p99_ms": round(float(np.quantile(values, 0.99)), 3),
        "max_ms": round(float(values.max()), 3),
        "n": len(values),
    }


def gate(trips: int, robot: str) -> dict[str, Any]:
    """Good commands at 100 Hz, then a NaN or an e-stop; how long until the hold or stop is there."""
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Bool
    from std_srvs.srv import Trigger
    from valueguide_msgs.msg import Command, Heartbeat

    from valueguide.config.robot import load_robot

    probe, description = Probe(), load_robot(robot)
    names = description.action.names
    heard = probe.listen("command", Command)
    joints = probe.node.create_publisher(JointState, "joint_states", 2)
    poses = probe.node.create_publisher(PoseStamped, "ee_pose", 2)
    proposals = probe.node.create_publisher(Command, "proposed_command", 50)
    beats = probe.node.create_publisher(Heartbeat, "heartbeat", 50)
    estop = probe.node.create_publisher(Bool, "estop", 50)
    arm = [*description.joints.names, description.joints.gripper]
    state = JointState(name=arm, position=[0.0, 1.6, 1.3, -0.9, 0.0, 0.0, 0.04], velocity=[0.0] * 7)
    pose = PoseStamped()
    pose.pose.position.x, pose.pose.position.z = 0.2, 0.15
    sequence = 0

    def alive() -> None:
        joints.publish(state)
        poses.publish(pose)
        for peer in description.watchdog.peers:
            beats.publish(Heartbeat(node=peer, state="active"))

    def propose(value: float) -> float:
        nonlocal sequence
        sequence += 1
        message = Command(names=names, values=[value] * len(names), sequence=sequence)
        message.header.stamp = probe.node.get_clock().now().to_msg()
        proposals.publish(message)
        return time.monotonic()

    def run(count: int) -> None:
        for _ in range(count):
            alive()
            propose(0.0)
            probe.spin(0.01)

    while not any(m.kind == Command.MOVE for _, m in heard):
        run(1)
    refused, stopped = [], []
    for trip in range(trips):
        run(5)
        heard.clear()
        if trip % 2:
            since = propose(float("nan"))
            probe.until(lambda: [m for _, m in heard if m.kind == Command.HOLD], "hold", 5)
            refused.append(next(at for at, m in heard if m.kind == Command.HOLD) - since)
        else:
            since = time.monotonic()
            estop.publish(Bool(data=True))
            probe.until(lambda: [m for _, m in heard if m.kind == Command.STOP], "stop", 5)
            stopped.append(next(at for at, m in heard if m.kind == Command.STOP) - since)
            alive()
            probe.spin(0.02)
            probe.call("estop_reset", Trigger)
    return {"refused_to_hold": spread(refused), "estop_to_stop": spread(stopped)}


def executor(seconds: float) -> dict[str, Any]:
    """Answers every request at once, and looks at the beat of the control steps."""
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Empty
    from valueguide_msgs.msg import ActionChunk, ChunkRequest, Command, Task

    probe = Probe()
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    tasks = probe.node.create_publisher(Task, "task", latched)
    chunks = probe.node.create_publisher(ActionChunk, "chunk", 50)
    steps = probe.listen("proposed_command", Command)
    horizon, dim = 50, 5

    def answer(request: Any) -> None:
        chunks.publish(
            ActionChunk(
                request_id=request.request_id,
                episode_id=request.episode_id,
                horizon=horizon,
                action_dim=dim,
                actions=[0.0] * (horizon * dim),
                start=len(request.committed) // dim,
                end=horizon,
            )
        )

    probe.node.create_subscription(ChunkRequest, "chunk_request", answer, 50)
    probe.until(lambda: probe.node.count_publishers("proposed_command"), "executor")
    tasks.publish(Task(active=True, episode_id=1, instruction="bench", mode="base"))
    probe.until(lambda: len(steps) > 50, "control steps")
    steps.clear()
    probe.spin(seconds)
    found = {"executor": spread(_lateness([at for at, _ in steps]))}
    tasks.publish(Task(active=False, finished=True, episode_id=1))
    probe.spin(0.2)
    # The baseline: the same beat from a bare rclpy timer in a process of its own.
    bare = probe.listen("bench_bare", Empty)
    other = subprocess.Popen([sys.executable, "-m", __spec__.name, "bare_timer", "{}"])
    probe.until(lambda: len(bare) > 50, "bare timer")
    bare.clear()
    probe.spin(seconds)
    other.kill()
    return {**found, "bare_timer": spread(_lateness([at for at, _ in bare]))}


def bare_timer() -> dict[str, Any]:
    """Publishes at 100 Hz until killed."""
    from std_msgs.msg import Empty

    probe = Probe()
    out = probe.node.create_publisher(Empty, "bench_bare", 50)
    probe.node.create_timer(0.01, lambda: out.publish(Empty()))
    probe.spin(3600)
    return {}


def _lateness(times: list[float], period: float = 0.01) -> list[float]:
    """|interval - period| of consecutive arrivals, seconds."""
    return np.abs(np.diff(times) - period).tolist()


def images(count: int, side: int) -> dict[str, Any]:
    """One-way time of pictures from another process, bare and synchronised into observations."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image, JointState

    from valueguide.config.robot import decode_robot
    from valueguide.ros.observe import ObservationBuilder

    probe = Probe()
    sensor = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
    content: dict[str, Any] = {
        "name": "bench",
        "rate_hz": 10.0,
        "action": {"kind": "joint_position", "names": ["a"]},
        "limits": {"action_low": [0.0], "action_high": [1.0]},
        "joints": {"names": ["a"]},
        "state": ["position.a"],
        "cameras": {"front": {"topic": "bench_image", "width": side, "height": side}},
    }
    builder = ObservationBuilder(decode_robot(content, "bench"), frozen_s=0.0)
    bare: list[float] = []
    ours: list[float] = []

    def on_bare(message: Any) -> None:
        np.frombuffer(message.data, np.uint8).reshape(side, side, 3)
        bare.append(time.monotonic_ns() / 1e9 - float(message.header.frame_id))

    def on_ours(message: Any) -> None:
        builder.push("camera/front", message)
        builder.push("joints", JointState(header=message.header, name=["a"], position=[0.0]))
        builder.observe("")
        ours.append(time.monotonic_ns() / 1e9 - float(message.header.frame_id))

    for callback in (on_bare, on_ours):  # one after the other, so that neither waits for the other
        subscription = probe.node.create_subscription(Image, "bench_image", callback, sensor)
        other = subprocess.Popen([sys.executable, "-m", __spec__.name, "camera", json.dumps({"side": side})])
        done = bare if callback is on_bare else ours
        probe.until(lambda done=done: len(done) >= count, "pictures")  # type: ignore[misc]
        other.kill()
        other.wait()
        probe.node.destroy_subscription(subscription)
    ratio = float(np.median(ours) / np.median(bare))
    return {"bare": spread(bare), "synchronised": spread(ours), "ratio": round(ratio, 3)}


def camera(side: int) -> dict[str, Any]:
    """Publishes noise at 30 Hz until killed; the header's frame says when, on the monotonic clock."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    probe = Probe()
    sensor = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
    out = probe.node.create_publisher(Image, "bench_image", sensor)
    data = np.random.default_rng(0).integers(0, 256, side * side * 3, dtype=np.uint8).tobytes()

    def publish() -> None:
        message = Image(height=side, width=side, encoding="rgb8", step=3 * side, data=data)
        message.header.stamp = probe.node.get_clock().now().to_msg()
        message.header.frame_id = repr(time.monotonic_ns() / 1e9)
        out.publish(message)

    probe.node.create_timer(1 / 30, publish)
    probe.spin(3600)
    return {}


def decisions(episodes: int) -> dict[str, Any]:
    """Runs episodes of a task and splits each decision into stages."""
    from rclpy.action import ActionClient
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image
    from valueguide_msgs.action import ExecuteTask
    from valueguide_msgs.msg import ActionChunk, ChunkRequest, Command, Decision, Heartbeat
    from valueguide_msgs.srv import ResetSim

    probe = Probe()
    sensor = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
    beats: set[str] = set()
    probe.node.create_subscription(Heartbeat, "heartbeat", lambda m: beats.add(m.node), 50)
    wanted = {"robot", "policy", "executor", "safety_gate", "task"}
    probe.until(lambda: wanted <= beats, "nodes", 240)
    pictures = probe.listen("front/image", Image, sensor)
    requests, made = probe.listen("chunk_request", ChunkRequest), probe.listen("decision", Decision)
    chunks, sent = probe.listen("chunk", ActionChunk), probe.listen("command", Command)
    client: Any = ActionClient(probe.node, ExecuteTask, "execute_task")
    probe.until(client.server_is_ready, "execute_task")
    stages: dict[str, list[float]] = {}
    won = 0
    for episode in range(episodes):
        reset = ResetSim.Request(task=("pick_can", "press_button")[episode % 2], seed=3000 + episode)
        answer = probe.call("reset_sim", ResetSim, reset)
        for heard in (pictures, requests, made, chunks, sent):
            heard.clear()
        goal: Any = client.send_goal_async(ExecuteTask.Goal(instruction=answer.instruction, mode="guided"))
        probe.until(goal.done, "answer to the goal")
        result: Any = goal.result().get_result_async()
        probe.until(result.done, "end of the episode")
        won += bool(result.result().result.success)
        for name, values in _stages(pictures, requests, made, chunks, sent).items():
            stages.setdefault(name, []).extend(values)
    out: dict[str, Any] = {name: spread(values) for name, values in stages.items() if values}
    return {**out, "episodes": episodes, "succeeded": won}


def episodes(plan: list[dict[str, Any]], time_limit_s: float, max_steps: int) -> dict[str, Any]:
    """Runs each of `plan` ({task, seed, mode}) once; whether it succeeded, and why it ended.

    An episode is broken off after `max_steps` control steps, as in `valueguide eval`. Pauses in which the
    arm waits for a chunk are not counted there, so they are not here; `time_limit_s` is only a safeguard.
    """
    from rclpy.action import ActionClient
    from valueguide_msgs.action import ExecuteTask
    from valueguide_msgs.msg import ExecutorState, Heartbeat
    from valueguide_msgs.srv import ResetSim

    probe = Probe()
    beats: set[str] = set()
    probe.node.create_subscription(Heartbeat, "heartbeat", lambda m: beats.add(m.node), 50)
    wanted = {"robot", "policy", "executor", "safety_gate", "task"}
    probe.until(lambda: wanted <= beats, "nodes", 240)
    client: Any = ActionClient(probe.node, ExecuteTask, "execute_task")
    probe.until(client.server_is_ready, "execute_task")
    states = probe.listen("executor_state", ExecutorState)
    probe.until(lambda: states, "state of the executor")
    out = []
    for item in plan:
        began = states[-1][1].steps
        del states[:-1]
        reset = ResetSim.Request(task=item["task"], seed=item["seed"])
        answer = probe.call("reset_sim", ResetSim, reset)
        goal = ExecuteTask.Goal(
            instruction=answer.instruction, mode=item["mode"], time_limit_s=time_limit_s, seed=item["seed"]
        )
        sent: Any = client.send_goal_async(goal)
        probe.until(sent.done, "answer to the goal")
        result: Any = sent.result().get_result_async()

        def over(began: int = began, result: Any = result) -> bool:
            return result.done() or states[-1][1].steps - began >= max_steps

        probe.until(over, "end of the episode", 300)
        if not result.done():
            # What the last step did is seen a moment later; a success is then still one.
            probe.spin(_LAST_STEP_S)
            sent.result().cancel_goal_async()
            probe.until(result.done, "end of the canceled episode")
        found = result.result().result
        steps = states[-1][1].steps - began
        out.append({**item, "success": bool(found.success), "reason": found.reason, "steps": steps})
    return {"episodes": out}


def _stages(pictures: Any, requests: Any, made: Any, chunks: Any, sent: Any) -> dict[str, list[float]]:
    """Seconds of every stage of every decision that can be followed from picture to command."""
    shown = {_ns(m.header.stamp): at for at, m in pictures}
    asked = {m.request_id: at for at, m in requests}
    planned = {m.request_id: (at, m.chunk_id) for at, m in chunks}
    first = {m.chunk_id: at for at, m in reversed(sent) if m.kind == 0}
    out: dict[str, list[float]] = {
        name: []
        for name in ("wait_for_picture", "policy", "critic", "graph_over_loop", "chunk_to_command", "total")
    }
    for _, decision in made:
        number = decision.request_id
        near = [at for stamp, at in shown.items() if abs(stamp - _ns(decision.header.stamp)) < 20_000_000]
        if number not in asked or number not in planned or planned[number][1] not in first or not near:
            continue
        chunk_at, command_at = planned[number][0], first[planned[number][1]]
        picture_at = max(min(near), asked[number])
        thinking = decision.policy_s + decision.critic_s
        out["wait_for_picture"].append(picture_at - asked[number])
        out["policy"].append(decision.policy_s)
        out["critic"].append(decision.critic_s)
        out["chunk_to_command"].append(command_at - chunk_at)
        out["graph_over_loop"].append(command_at - picture_at - thinking)
        out["total"].append(command_at - asked[number])
    return out


def _ns(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


PARTS = {f.__name__: f for f in (gate, executor, images, decisions, episodes, bare_timer, camera)}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
