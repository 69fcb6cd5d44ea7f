"""The stand-in robot as others see it: its clock, its measurements, how it obeys, and its faults."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import yaml

from sim.env import TabletopEnv
from valueguide.config.robot import ROBOTS

pytestmark = pytest.mark.ros

_TASK, _SEED = "carrot_on_plate", 4
_PERIOD = 100_000_000


def _stamp(message: Any) -> int:
    stamp = message.header.stamp if hasattr(message, "header") else message.clock
    return stamp.sec * 10**9 + stamp.nanosec


def _reset(client: Any, task: str = "", seed: int = _SEED) -> Any:
    from valueguide_msgs.srv import ResetSim

    return client.call("reset_sim", ResetSim, ResetSim.Request(task=task, seed=seed))


def _set(client: Any, **values: Any) -> str:
    """Set parameters of the robot; the reason when they are refused."""
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    request = SetParameters.Request(parameters=parameters)
    results = client.call("robot/set_parameters", SetParameters, request).results
    return next((result.reason for result in results if not result.successful), "")


def _set_faults(client: Any, *faults: dict) -> None:
    assert _set(client, faults=json.dumps(faults)) == ""


def _move(publisher: Any, action: Any, sequence: int = 0) -> None:
    from valueguide_msgs.msg import Command

    names = ["dx", "dy", "dz", "dyaw", "grip"]
    publisher.publish(Command(kind=Command.MOVE, names=names, values=action, sequence=sequence))


def _measurements() -> dict[str, Any]:
    from geometry_msgs.msg import PoseStamped, WrenchStamped
    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Float32MultiArray
    from valueguide_msgs.msg import Progress

    with Client() as client:
        client.active("robot")
        topics = {
            "joint_states": JointState,
            "ee_pose": PoseStamped,
            "wrench": WrenchStamped,
            "environment_state": Float32MultiArray,
            "front/image": Image,
            "wrist/image": Image,
            "sim_truth": Progress,
            "/clock": Clock,
        }
        heard = {topic: client.listen(topic, kind) for topic, kind in topics.items()}
        client.until(lambda: all(heard.values()), "message on every topic")
        answer = _reset(client, _TASK, _SEED)
        client.wait("/clock", Clock)
        for messages in heard.values():
            messages.clear()
        began = time.monotonic()
        client.until(lambda: len(heard["front/image"]) >= 20, "20 pictures")
        stamped = [topic for topic in topics if topic not in ("/clock", "environment_state")]
        picture, joints = heard["front/image"][-1], heard["joint_states"][-1]
        clock = [_stamp(message) for message in heard["/clock"]]
        return {
            "wall": time.monotonic() - began,
            "instruction": answer.instruction,
            "success": answer.success,
            "refusal": _reset(client, "fold_shirt").message,
            "clock": clock,
            "stamps": {topic: [_stamp(message) for message in heard[topic]] for topic in stamped},
            "picture": [picture.encoding, picture.height, picture.width, picture.step, len(picture.data)],
            "grey": float(np.frombuffer(picture.data, np.uint8).mean()),
            "joints": dict(zip(joints.name, joints.position, strict=True)),
            "frame": heard["ee_pose"][-1].header.frame_id,
            "privileged": list(heard["environment_state"][-1].data),
            "truth": [heard["sim_truth"][-1].value, heard["sim_truth"][-1].success],
        }


def test_it_measures_and_resets(node, in_ros) -> None:
    node("sim_robot", _name="robot", task="pick_can", camera_hz=20.0)
    got = in_ros(_measurements)
    env = TabletopEnv(_TASK, "state")
    raw, info = env.reset(seed=_SEED)
    assert got["success"] and got["instruction"] == info["task_description"]
    assert got["refusal"].startswith("task: expected one of")
    np.testing.assert_allclose(got["privileged"], raw["environment_state"], atol=2e-3)
    assert got["truth"] == [pytest.approx(info["progress"], abs=0.01), False]
    # The clock only goes forward, and stamps are moments of it.
    clock = got["clock"]
    assert np.diff(clock).min() > 0
    for topic, stamps in got["stamps"].items():
        assert np.diff(stamps).min() > 0, topic
        assert not ((np.array(stamps) - clock[0]) % 4_000_000).any(), topic
        assert clock[0] - 1e9 < stamps[0] and stamps[-1] < clock[-1] + 1e9, topic
    both = {*got["stamps"]["front/image"]} & {*got["stamps"]["wrist/image"]}
    assert len(both) >= 15  # the cameras see the same instant
    assert np.median(np.diff(got["stamps"]["joint_states"])) <= 17e6  # 60 a second
    assert np.diff(got["stamps"]["front/image"]).mean() == pytest.approx(50e6, rel=0.2)
    assert np.diff(got["stamps"]["sim_truth"]).mean() == pytest.approx(100e6, rel=0.05)
    assert got["picture"] == ["rgb8", 128, 128, 384, 128 * 128 * 3] and 20 < got["grey"] < 235
    assert got["joints"].keys() == {*(f"joint_{i}" for i in range(6)), "gripper", "gripper_command"}
    assert got["frame"] == "base_link"
    # However busy the machine is, simulated time never runs ahead of wall time.
    assert (clock[-1] - clock[0]) / 1e9 < got["wall"] + 0.2


def _drive(actions: list[list[float]]) -> list[list[float]]:
    """Where the hand is one control period after each command, paced by the robot's clock."""
    from geometry_msgs.msg import PoseStamped
    from ros_client import Client
    from valueguide_msgs.msg import Command

    with Client() as client:
        client.active("robot")
        commands = client.publisher("command", Command)
        poses = client.listen("ee_pose", PoseStamped)
        assert _reset(client, _TASK, _SEED).success
        poses.clear()
        due = _stamp(client.until(lambda: poses, "pose")[-1]) // _PERIOD * _PERIOD + 2 * _PERIOD
        places = []
        for i, action in enumerate(actions):
            client.until(lambda due=due: _stamp(poses[-1]) >= due, "time of the next command")
            _move(commands, action, i)
            due += _PERIOD
        for i in range(len(actions)):
            end = due - (len(actions) - 1 - i) * _PERIOD
            client.until(lambda end=end: _stamp(poses[-1]) >= end, "end of the motion")
            point = next(p for p in poses if _stamp(p) >= end).pose.position
            places.append([point.x, point.y, point.z])
        return places


def test_commands_move_the_hand_as_they_move_it_in_the_environment(node, in_ros) -> None:
    node("sim_robot", _name="robot", visuals="none")
    moves = [[0.02, 0.01, -0.02, 0.1, 1], [0.02, -0.02, -0.01, 0, 1], [-0.01, -0.02, 0.01, -0.1, 0]]
    actions = [moves[i // 4 % 3] for i in range(16)]
    places = np.array(in_ros(_drive, actions=actions))
    env = TabletopEnv(_TASK, "state")
    env.reset(seed=_SEED)
    expected = []
    for action in actions:
        env.step(np.array(action, np.float32))
        expected.append(env.world.arm.position())
    # Commands take a few milliseconds to arrive, in which the hand goes on at up to 0.3 m/s.
    assert np.abs(places - expected).max() < 0.012
    np.testing.assert_allclose(places[-1], expected[-1], atol=0.012)
    assert np.linalg.norm(places[-1] - places[0]) > 0.05


def _obey() -> dict[str, Any]:
    from geometry_msgs.msg import PoseStamped
    from ros_client import Client
    from valueguide_msgs.msg import Command

    with Client() as client:
        client.active("robot")
        commands = client.publisher("command", Command)
        poses = client.listen("ee_pose", PoseStamped)
        assert _reset(client, "pick_can", _SEED).success

        def path(seconds: float) -> float:
            """Distance between the first and last pose of the next simulated seconds."""
            poses.clear()
            client.until(lambda: poses and _stamp(poses[-1]) - _stamp(poses[0]) > seconds * 1e9, "poses")
            ends = [(p.pose.position.x, p.pose.position.y, p.pose.position.z) for p in (poses[0], poses[-1])]
            return math.dist(*ends)

        moved = {}
        _move(commands, [0, 0.03, 0, 0, 1])
        moved["move"] = path(0.2)
        for name, kind in (("hold", Command.HOLD), ("stop", Command.STOP)):
            path(0.3)
            _move(commands, [0, 0.03, 0, 0, 1])
            commands.publish(Command(kind=kind, reason="test"))
            moved[name] = path(0.3)
        _move(commands, [0, -0.03, 0, 0, 1])
        moved["again"] = path(0.2)
        path(0.3)
        for wrong in (Command(names=["dx"], values=[0.03]), Command(values=[0.03] * 5)):
            _move(commands, [0, -0.03, 0, 0, 1])
            commands.publish(wrong)
            moved["wrong"] = path(0.3)
        # What a silent commander left undone is not made up for later.
        _set_faults(client, {"kind": "stuck_actuator", "part": "joint_0"})
        _move(commands, [0, -0.03, 0, 0, 1])
        path(1.3)
        _set_faults(client)
        moved["silence"] = path(0.4)
        return moved


def test_it_moves_holds_and_refuses(node, in_ros) -> None:
    running = node("sim_robot", _name="robot", visuals="none", image_size=32)
    moved = in_ros(_obey)
    assert moved["move"] > 0.015 and moved["again"] > 0.015
    assert max(moved[name] for name in ("hold", "stop", "wrong", "silence")) < 0.004
    log = running.log("robot-1")
    assert "command: names: expected dx, dy, dz, dyaw, grip, found dx" in log


def _during(client: Any, heard: dict[str, list], *faults: dict, seconds: float = 0.5) -> None:
    """Run with these faults, and keep only what was heard after they came into force."""
    _set_faults(client, *faults)
    clock = heard["clock"]
    clock.clear()
    client.until(lambda: len(clock) >= 15, "clock")  # what was under way has arrived
    for messages in heard.values():
        messages.clear()
    client.until(lambda: len(clock) >= seconds * 60, "simulated time")


def _late(client: Any, heard: dict[str, list], topic: str) -> float:
    """How far the clock is ahead of the next message of a topic, seconds."""
    heard[topic].clear()
    message = client.until(lambda: heard[topic], topic)[0]
    return (_stamp(heard["clock"][-1]) - _stamp(message)) / 1e9


def _state_faults() -> dict[str, Any]:
    from geometry_msgs.msg import PoseStamped
    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import JointState
    from valueguide_msgs.msg import Command

    with Client() as client:
        client.active("robot")
        commands = client.publisher("command", Command)
        kinds = {"/clock": Clock, "joint_states": JointState, "ee_pose": PoseStamped}
        heard = {topic.strip("/"): client.listen(topic, kind) for topic, kind in kinds.items()}
        clock, joints, poses = heard.values()
        assert _reset(client, _TASK, _SEED).success
        got: dict[str, Any] = {"refused": _set(client, faults='[{"kind": "fire"}]')}
        _during(client, heard, {"kind": "silent_joint_states"})
        got["silent"] = [len(joints), len(poses)]
        nan = [{"kind": "nan_state", "part": part} for part in ("joint_3", "hand")]
        _during(client, heard, *nan, seconds=0.2)
        got["nan"] = [i for i, value in enumerate(joints[-1].position) if math.isnan(value)]
        got["nan_hand"] = math.isnan(poses[-1].pose.position.x)
        _during(client, heard, {"kind": "delay_state", "seconds": 0.2}, seconds=0.3)
        got["late"] = [_late(client, heard, topic) for topic in ("joint_states", "ee_pose")]
        _during(client, heard, {"kind": "stuck_actuator", "part": "joint_0"}, seconds=0.1)
        first = joints[-1].position
        _move(commands, [0.03, 0.03, 0, 0, 1])
        joints.clear()
        client.until(lambda: len(joints) > 60, "joints")
        got["stuck"] = [abs(joints[-1].position[i] - first[i]) for i in (0, 1)]
        before = _stamp(clock[-1])
        _set_faults(client, {"kind": "clock_jump", "seconds": -5.0})
        client.until(lambda: _stamp(clock[-1]) < before - 3e9, "clock that leapt back")
        joints.clear()
        got["leapt"] = (_stamp(client.until(lambda: joints, "joints")[-1]) - before) / 1e9
        return got


def test_faults_of_the_state_do_what_they_say(node, in_ros) -> None:
    node("sim_robot", _name="robot", visuals="none")
    got = in_ros(_state_faults)
    assert "faults[0]: kind: expected freeze_camera or" in got["refused"]
    assert got["silent"][0] == 0 and got["silent"][1] > 10
    assert got["nan"] == [3] and got["nan_hand"]
    assert all(0.15 < seconds < 0.6 for seconds in got["late"])
    assert got["stuck"][0] < 0.01 < got["stuck"][1]
    assert -5.1 < got["leapt"] < -3


def _camera_faults() -> dict[str, Any]:
    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CompressedImage
    from valueguide_msgs.msg import Command

    with Client() as client:
        client.active("robot")
        commands = client.publisher("command", Command)
        kinds = {"/clock": Clock, "front/image": CompressedImage, "wrist/image": CompressedImage}
        heard = {topic.split("/")[0] or "clock": client.listen(topic, kind) for topic, kind in kinds.items()}
        assert _reset(client, _TASK, _SEED).success

        def gaps(camera: str) -> list[int]:
            return np.diff([_stamp(message) for message in heard[camera]]).tolist()

        def different(camera: str) -> int:
            return len({bytes(message.data) for message in heard[camera]})

        got: dict[str, Any] = {"format": client.until(lambda: heard["front"], "picture")[-1].format}
        _set_faults(client, {"kind": "freeze_camera", "camera": "front"})
        _move(commands, [0, 0.03, 0.03, 0, 1])
        _during(client, heard, {"kind": "freeze_camera", "camera": "front"})
        _move(commands, [0, -0.03, 0.03, 0, 1])
        client.until(lambda: len(heard["clock"]) > 120, "motion")
        got["frozen"] = [different("front"), different("wrist"), min(gaps("front"))]
        _during(client, heard, {"kind": "freeze_camera", "camera": "front", "stamp": "same"})
        got["frozen_stamp"] = [len(heard["front"]), max(gaps("front")), min(gaps("wrist"))]
        _during(client, heard, {"kind": "drop_images", "camera": "wrist", "probability": 1.0})
        got["dropped"] = [len(heard["front"]), len(heard["wrist"])]
        _during(client, heard, {"kind": "delay_images", "camera": "front", "seconds": 0.3}, seconds=0.4)
        got["late"] = [_late(client, heard, camera) for camera in ("front", "wrist")]
        return got


def test_faults_of_cameras_do_what_they_say(node, in_ros, tmp_path) -> None:
    description = yaml.safe_load((ROBOTS / "sim.yaml").read_text())
    for camera in description["cameras"].values():
        camera["kind"] = "compressed"
    (tmp_path / "sim_jpeg.yaml").write_text(yaml.safe_dump(description))
    node("sim_robot", _name="robot", robot=str(tmp_path / "sim_jpeg.yaml"), visuals="none", image_size=64)
    got = in_ros(_camera_faults)
    assert got["format"] == "jpeg"
    assert got["frozen"][0] == 1 and got["frozen"][1] > 3 and got["frozen"][2] > 0
    assert got["frozen_stamp"][0] > 5 and got["frozen_stamp"][1] == 0 and got["frozen_stamp"][2] > 0
    assert got["dropped"][0] > 5 and got["dropped"][1] == 0
    assert 0.28 < got["late"][0] < 0.7 and got["late"][1] < got["late"][0]


def _speed() -> dict[str, Any]:
    from diagnostic_msgs.msg import DiagnosticArray
    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import Image

    with Client() as client:
        client.active("robot")
        clock = client.listen("/clock", Clock)
        # Pictures are only made for somebody, and no machine makes 1200 a second.
        for camera in ("front", "wrist"):
            client.listen(f"{camera}/image", Image)

        def factor(speed: float) -> float:
            assert _set(client, speed=speed) == ""
            clock.clear()
            began = time.monotonic()
            client.until(lambda: clock and time.monotonic() - began > 1.5, "clock")
            return (_stamp(clock[-1]) - _stamp(clock[0])) / 1e9 / (time.monotonic() - began)

        factors = {"slow": factor(0.2), "overload": factor(20.0)}
        ours = client.wait(
            "/diagnostics",
            DiagnosticArray,
            lambda m: m.status[0].name == "/robot" and m.status[0].message != "ok",
        )
        return {**factors, "diagnosis": ours.status[0].message, "refused": _set(client, speed=0.0)}


def test_speed_is_kept_or_overload_is_said(node, in_ros) -> None:
    node("sim_robot", _name="robot", visuals="none")
    got = in_ros(_speed)
    assert 0.1 < got["slow"] < 0.22
    assert 0.25 < got["overload"] < 20
    assert got["diagnosis"].startswith("overload: simulated time runs at")
    assert got["refused"]


def test_a_wrong_description_is_one_clear_line(node, tmp_path) -> None:
    description = yaml.safe_load((ROBOTS / "sim.yaml").read_text())
    description["cameras"]["rear"] = description["cameras"].pop("front")
    (tmp_path / "rear.yaml").write_text(yaml.safe_dump(description))
    running = node("sim_robot", _name="robot", robot=str(tmp_path / "rear.yaml"))
    limit = time.monotonic() + 20
    while "found rear" not in running.log("robot-1") and time.monotonic() < limit:
        time.sleep(0.1)
    assert "simulator: camera: expected front or wrist, found rear" in running.log("robot-1")
    assert "Traceback" not in running.log("robot-1")
