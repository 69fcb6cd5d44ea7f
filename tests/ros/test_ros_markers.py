"""What people see: markers and the annotated picture, from published candidates and decisions."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sim.env import TabletopEnv
from valueguide.drawing import score_colors

pytestmark = pytest.mark.ros

_VALUES = [0.2, 0.9, 0.5]


def _candidates(actions: Any, request: int = 1) -> Any:
    from valueguide_msgs.msg import Candidates

    k, horizon, dim = actions.shape
    flat = [float(v) for v in actions.ravel()]
    return Candidates(request_id=request, k=k, horizon=horizon, action_dim=dim, actions=flat)


def _decision(index: int, request: int = 1, values: list[float] | None = None) -> Any:
    from valueguide_msgs.msg import Decision, Scores

    found = Scores() if values is None else Scores(members=1, k=len(values), q=values, values=values)
    return Decision(request_id=request, index=index, preferred=index, reason="argmax", scores=found)


def _look(start: list[float], actions: list[Any], picture: str) -> dict[str, Any]:
    from geometry_msgs.msg import PoseStamped
    from ros_client import Client
    from sensor_msgs.msg import Image
    from valueguide_msgs.msg import Candidates, Decision, InterventionState, SafetyState, Task
    from visualization_msgs.msg import MarkerArray

    chunk = np.asarray(actions, np.float32)
    with Client() as client:
        client.active("markers")
        arrays = client.listen("candidate_markers", MarkerArray)
        pictures = client.listen("annotated/image", Image)
        poses = client.publisher("ee_pose", PoseStamped)
        candidates, decisions = (
            client.publisher("candidates", Candidates),
            client.publisher("decision", Decision),
        )
        images, task = client.publisher("front/image", Image), client.publisher("task", Task)
        safety = client.publisher("safety_state", SafetyState)
        human = client.publisher("intervention", InterventionState)
        pose = PoseStamped()
        point = pose.pose.position
        point.x, point.y, point.z = start
        frame = Image(height=128, width=128, encoding="rgb8", step=384, data=base64.b64decode(picture))

        def seen(condition: Callable[[], Any], what: str, message: Any = None, publisher: Any = None) -> Any:
            def step() -> Any:
                if message is not None:
                    publisher.publish(message)
                poses.publish(pose)
                client.spin(0.05)
                return condition()

            return client.until(step, what)

        def shown() -> Any:
            images.publish(frame)
            return pictures and pictures[-1]

        task.publish(Task(active=True, instruction="put the carrot on the plate"))
        safety.publish(SafetyState(state=SafetyState.OK))
        seen(shown, "a picture without a plan")
        bare = base64.b64encode(bytes(pictures[-1].data)).decode()
        client.spin(0.3)
        candidates.publish(_candidates(chunk))
        decisions.publish(_decision(9, values=_VALUES))  # no such candidate: said, not drawn
        candidates.publish(_candidates(chunk, 2))
        decisions.publish(_decision(1, 2, _VALUES))
        seen(lambda: arrays, "markers")
        drawn = arrays[-1].markers
        pictures.clear()
        seen(lambda: len(pictures) > 2, "pictures", frame, images)
        annotated = pictures[-1]
        seen(lambda: len(arrays) > 1, "their end", InterventionState(active=True, device="joy"), human)
        cleared = [marker.action for marker in arrays[-1].markers]
        count = len(arrays)
        candidates.publish(_candidates(chunk, 3))
        decisions.publish(_decision(0, 3, _VALUES))
        client.spin(0.5)
        return {
            "bare": bare,
            "markers": [
                {
                    "ns": m.ns, "id": m.id, "action": m.action, "frame": m.header.frame_id,
                    "width": m.scale.x, "rgb": [m.color.r, m.color.g, m.color.b],
                    "points": [[p.x, p.y, p.z] for p in m.points],
                }
                for m in drawn
            ],
            "annotated": base64.b64encode(bytes(annotated.data)).decode(),
            "size": [annotated.height, annotated.width],
            "cleared": cleared,
            "during_takeover": len(arrays) - count,
        }  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    """A start, three candidates that part, and where the simulator would draw them."""
    env = TabletopEnv("carrot_on_plate", observation="state", visuals="none")
    env.reset(seed=0)
    actions = np.zeros((3, 8, 5), np.float32)
    actions[0, :, 1], actions[1, :, 1], actions[2, :, 0] = 0.02, -0.02, 0.02
    lines = env.project_candidates(actions)
    start = env.world.arm.position()
    env.close()
    return {"start": start.tolist(), "actions": actions, "lines": lines}


def test_markers_and_picture_show_the_candidates(
    node: Callable[..., Any], in_ros: Callable[..., Any], scene: dict[str, Any]
) -> None:
    node("markers", robot="sim")
    grey = np.full((128, 128, 3), 70, np.uint8)
    picture = base64.b64encode(grey.tobytes()).decode()
    found = in_ros(_look, start=scene["start"], actions=scene["actions"].tolist(), picture=picture)

    first, *rest = found["markers"]
    assert first["action"] == 3, "what was shown before is deleted"
    lines = {m["id"]: m for m in rest if m["points"]}
    assert {(i, m["ns"]) for i, m in lines.items()} == {(0, "candidates"), (1, "chosen"), (2, "candidates")}
    assert {m["frame"] for m in rest} == {"base_link"}
    assert lines[1]["width"] > 2 * lines[0]["width"]
    colors = score_colors(np.array(_VALUES))
    for index, marker in lines.items():
        np.testing.assert_allclose(np.array(marker["rgb"]) * 255, colors[index], atol=0.6)
        np.testing.assert_allclose(marker["points"][0], scene["start"], atol=1e-6)
        end = np.array(scene["start"]) + scene["actions"][index, :, :3].sum(axis=0)
        np.testing.assert_allclose(marker["points"][-1], end, atol=1e-6)

    height, width = found["size"]
    drawn = np.frombuffer(base64.b64decode(found["annotated"]), np.uint8).reshape(height, width, 3)
    scale = width // 128
    for index in (0, 1, 2):
        x, y = np.round(scene["lines"][index][-1] * scale).astype(int)
        patch = drawn[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).astype(int)
        assert np.abs(patch - colors[index]).max(axis=1).min() < 25, f"tip of candidate {index} at {x}, {y}"
    assert (drawn[128 * scale :] > 150).any(), "words"
    bare = np.frombuffer(base64.b64decode(found["bare"]), np.uint8)
    pixels = bare[: 128 * scale * width * 3].reshape(-1, 3)
    assert (pixels == 70).all(), "nothing is drawn into the picture before a decision"
    assert found["cleared"] == [3], "a takeover ends the plan"
    assert found["during_takeover"] == 0


def _look_at_joint_robot(urdf: str, joints: list[float]) -> dict[str, Any]:
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from ros_client import Client
    from std_msgs.msg import String
    from valueguide_msgs.msg import Candidates, Decision
    from visualization_msgs.msg import MarkerArray

    with Client() as client:
        client.active("markers")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        client.node.create_publisher(String, "robot_description", latched).publish(String(data=urdf))
        arrays = client.listen("candidate_markers", MarkerArray)
        candidates, decisions = (
            client.publisher("candidates", Candidates),
            client.publisher("decision", Decision),
        )
        actions = np.tile(np.array([*joints, 1.0], np.float32), (1, 4, 1))
        number = 0

        def step() -> Any:
            nonlocal number
            number += 1
            candidates.publish(_candidates(actions, number))
            decisions.publish(_decision(0, number))
            client.spin(0.1)
            return arrays and any(len(m.points) for m in arrays[-1].markers)

        client.until(step, "markers")
        line = next(m for m in arrays[-1].markers if len(m.points))
        return {
            "points": [[p.x, p.y, p.z] for p in line.points],
            "rgb": [line.color.r, line.color.g, line.color.b],
        }


def test_a_joint_robot_is_drawn_through_its_urdf(
    node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    names = ["shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3"]
    links = ["base", *names]
    urdf = "<robot name='ur'>" + "".join(f"<link name='{link}'/>" for link in links)
    for parent, child in zip(links, names, strict=False):
        urdf += (
            f"<joint name='{child}_joint' type='revolute'><parent link='{parent}'/><child link='{child}'/>"
            "<origin xyz='0.1 0 0'/><axis xyz='0 0 1'/></joint>"
        )
    node("markers", robot="ur5e")
    found = in_ros(_look_at_joint_robot, urdf=urdf + "</robot>", joints=[np.pi / 2, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(found["points"], np.tile([0.1, 0.5, 0.0], (4, 1)), atol=1e-5)
    assert found["rgb"] == [1, 1, 1], "white: nothing was scored"
