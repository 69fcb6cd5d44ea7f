"""`markers`: what the policy proposes and the critic thinks of it, for RViz, Foxglove and any image viewer.

`candidate_markers` holds the hand's path of every candidate, coloured by score, the chosen one thick.
`annotated/image` holds them drawn into a camera's picture, with the reason, who commands, and the safety
gate's state. Pictures are made only while somebody looks. Where a camera is: configs/cameras/.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import replace
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import ColorRGBA, String
from valueguide_msgs.msg import Candidates, Decision, ExecutorState, InterventionState, SafetyState, Task
from visualization_msgs.msg import Marker, MarkerArray

from valueguide.config.camera import load_cameras
from valueguide.config.robot import load_robot
from valueguide.drawing import score_colors
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.ros.draw import Plan, Status, annotate, hand_paths
from valueguide.ros.messages import candidates_from, decision_from, image_from, position_from, stamp_ns
from valueguide.ros.projection import project, with_camera_info
from valueguide.ros.urdf import UrdfChain
from valueguide.types import Float32
from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR, Param, VgNode, run

_THIN, _THICK, _TIP = 0.002, 0.006, 0.014
#: Viewers differ in what they ask for; reliable suits all, and a short queue keeps slow ones current.
_VIEW = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
_DESCRIPTION = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class MarkersNode(VgNode):
    NAME = "markers"
    PARAMETERS = (
        Param("camera", "", "camera of the robot's description to draw into; empty: its first"),
        Param("cameras", "", "name in configs/cameras or path of camera views; empty: the robot's name"),
        Param("tip_link", "", "link of the hand in robot_description; empty: what the last joint moves"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._markers = self.create_publisher(MarkerArray, "candidate_markers", RELIABLE)
        self._annotated = self.create_publisher(Image, "annotated/image", _VIEW)

    def setup(self) -> None:
        self._robot = load_robot(self.param("robot"))
        self._chain: UrdfChain | None = None
        self._places: deque[tuple[int, Float32]] = deque(maxlen=256)
        self._proposals: OrderedDict[int, Candidates] = OrderedDict()
        self._plan: Plan | None = None
        self._status, self._human, self._malformed = Status(), "", 0
        self._listen(Candidates, "candidates", self._on_candidates)
        self._listen(Decision, "decision", self._on_decision)
        self._listen(ExecutorState, "executor_state", self._on_executor)
        self._listen(InterventionState, "intervention", self._on_intervention, LATCHED)
        self._listen(SafetyState, "safety_state", self._on_safety, LATCHED)
        self._listen(Task, "task", self._on_task, LATCHED)
        if self._robot.pose_topic:
            self._listen(PoseStamped, self._robot.pose_topic, self._on_pose, SENSOR)
        if self._robot.action.kind == "joint_position":
            self._listen(String, "robot_description", self._on_description, _DESCRIPTION)
        self._setup_camera()

    def _listen(self, kind: Any, topic: str, callback: Any, profile: QoSProfile = RELIABLE) -> None:
        """Subscribe; a malformed message is counted and said, and what is shown stays as it was."""

        def safely(message: Any) -> None:
            try:
                callback(message)
            except DataError as error:
                self._malformed += 1
                self.get_logger().warning(str(error), throttle_duration_sec=1.0)

        self.create_subscription(kind, topic, self.guarded(safely), profile)

    def _setup_camera(self) -> None:
        cameras, name = self._robot.cameras, self.param("camera")
        if name and name not in cameras:
            raise ConfigError(mismatch("markers", "camera", " or ".join(cameras), name))
        self._camera, self._view = None, None
        if not cameras:
            return
        name = name or next(iter(cameras))
        views = load_cameras(self.param("cameras") or self._robot.name)
        # Drawn at the size that was published, not at what the policy gets.
        self._camera, self._view = replace(cameras[name], width=0, height=0), views.get(name)
        if self._view is not None and self._view.camera_info:
            self._listen(CameraInfo, self._view.camera_info, self._on_camera_info, SENSOR)
        kind = CompressedImage if self._camera.kind == "compressed" else Image
        self._listen(kind, self._camera.topic, self._on_image, SENSOR)

    def stop(self) -> None:
        self._show(None)

    def status(self) -> dict[str, Any]:
        facts = {
            "paths": "drawn" if self._plan is not None and self._plan.paths else "none",
            "camera": "none" if self._camera is None else self._camera.topic,
            "malformed": self._malformed,
        }
        if self._robot.action.kind == "joint_position" and self._chain is None:
            facts["warning"] = "no paths: nothing heard on robot_description"
        elif self._camera is not None and (self._view is None or not self._view.matrix):
            facts["warning"] = "no lines in the picture: where the camera is is unknown, see configs/cameras"
        return facts

    # What is known.

    def _on_pose(self, message: PoseStamped) -> None:
        self._places.append((stamp_ns(message), position_from(message)))

    def _on_description(self, message: String) -> None:
        robot = self._robot
        try:
            self._chain = UrdfChain.from_urdf(
                message.data, robot.joints.names, robot.frame, self.param("tip_link")
            )
        except ConfigError as error:
            raise DataError(str(error)) from error

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._view = with_camera_info(self._view, message, self._view.camera_info)

    def _on_executor(self, message: ExecutorState) -> None:
        self._status.commander = self._human or message.commander

    def _on_safety(self, message: SafetyState) -> None:
        self._status.safety, self._status.safety_reason = message.state, message.reason

    def _on_intervention(self, message: InterventionState) -> None:
        self._human = f"human ({message.device})" if message.active else ""
        if message.active:
            self._status.commander = self._human
            self._show(None)

    def _on_task(self, message: Task) -> None:
        self._status.instruction = message.instruction if message.active else ""
        if not message.active:
            self._show(None)

    def _on_candidates(self, message: Candidates) -> None:
        self._proposals[message.request_id] = message
        while len(self._proposals) > 4:
            self._proposals.popitem(last=False)

    def _on_decision(self, message: Decision) -> None:
        proposal = self._proposals.pop(message.request_id, None)
        if proposal is None or self._human:  # the executor drops what was decided before a takeover
            return
        actions, decision = candidates_from(proposal).actions, decision_from(message)
        if actions.shape[2] != len(self._robot.action.names):
            raise DataError(
                mismatch("candidates", "action_dim", len(self._robot.action.names), actions.shape[2])
            )
        k = len(actions)
        if not 0 <= decision.index < k:
            raise DataError(mismatch("decision", "index", f"0 to {k - 1}", decision.index))
        if decision.values is not None and len(decision.values) != k:
            raise DataError(mismatch("decision", "scores", f"{k}, one a candidate", len(decision.values)))
        start = self._place_at(stamp_ns(proposal))
        paths = hand_paths(actions, self._robot.action.kind, start, self._chain)
        self._show(Plan(paths or [], decision.values, decision.index, decision.reason))

    def _place_at(self, stamp: int) -> Float32 | None:
        """Where the hand was when the observation was made."""
        return min(self._places, key=lambda place: abs(place[0] - stamp))[1] if self._places else None

    # What is shown.

    def _show(self, plan: Plan | None) -> None:
        if plan is None and self._plan is None:
            return
        self._plan = plan
        markers = [self._marker(Marker.DELETEALL)]
        if plan is not None and plan.paths:
            k = len(plan.paths)
            white = np.full((k, 3), 255, np.uint8)
            colors = (white if plan.values is None else score_colors(plan.values)) / 255.0
            for index, path in enumerate(plan.paths):
                if len(path) > 1:
                    markers += self._path(index, path, colors[index].tolist(), index == plan.chosen)
        self._markers.publish(MarkerArray(markers=markers))

    def _marker(self, action: int, namespace: str = "", index: int = 0, kind: int = 0) -> Marker:
        marker = Marker(ns=namespace, id=index, type=kind, action=action)
        marker.header.frame_id, marker.header.stamp = self._robot.frame, self.stamp()
        marker.pose.orientation.w = 1.0
        return marker

    def _path(self, index: int, path: Float32, rgb: list[float], chosen: bool) -> list[Marker]:
        color = ColorRGBA(r=rgb[0], g=rgb[1], b=rgb[2], a=1.0 if chosen else 0.7)
        line = self._marker(Marker.ADD, "chosen" if chosen else "candidates", index, Marker.LINE_STRIP)
        line.scale.x, line.color = _THICK if chosen else _THIN, color
        line.points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in path]
        tip = self._marker(Marker.ADD, f"{line.ns}_tip", index, Marker.SPHERE)
        tip.pose.position = line.points[-1]
        tip.scale.x = tip.scale.y = tip.scale.z = _TIP if chosen else _TIP / 2
        tip.color = color
        return [line, tip]

    def _on_image(self, message: Any) -> None:
        if not self._annotated.get_subscription_count():
            return
        assert self._camera is not None
        frame = image_from(message, self._camera, self._camera.topic)
        height, width = frame.shape[:2]
        plan, view, lines = self._plan, self._view, None
        if plan is None:
            lines = []
        elif plan.paths and view is not None and view.matrix:
            lines = [project(path, view, width, height) for path in plan.paths]
        picture = annotate(frame, lines, plan, self._status.lines(plan))
        height, width = picture.shape[:2]
        out = Image(height=height, width=width, encoding="rgb8", step=3 * width, data=picture.tobytes())
        out.header = message.header
        self._annotated.publish(out)


def main() -> None:
    run(MarkersNode)
