"""`teleop`: a joystick, the keyboard program or a script commands in the policy's place.

Who may command, and what becomes of a device that falls silent: see valueguide.execution.teleop. Scripts
call the service `takeover` and publish control steps on `script_command`, run one a control period.
Stopped or dead while a human commands, this node leaves `intervention` as it was: the executor then holds,
rather than letting the policy go on beside a person who believes to be in command.
"""

from __future__ import annotations

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from valueguide_msgs.msg import Command, HelpRequest, InterventionState, Task

from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.execution import human_input
from valueguide.execution.human_input import Mapping, default_axes, parse_axes
from valueguide.execution.teleop import Device, HumanStep, Teleop, TeleopSettings
from valueguide.ros.messages import JointReader
from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR, Param, VgNode, run


class TeleopNode(VgNode):
    NAME = "teleop"
    PARAMETERS = (
        Param("axes", "", "which joystick axis drives which action: 'dx=+1 dy=-0'; empty: Xbox layout"),
        Param("deadman_button", human_input.DEADMAN, "held: a human commands (LB)", 0, 63),
        Param("estop_button", human_input.ESTOP, "stops for good (B)", 0, 63),
        Param("close_button", human_input.GRIP_CLOSE, "closes the gripper while held (A)", 0, 63),
        Param("open_button", human_input.GRIP_OPEN, "opens the gripper while held (Y)", 0, 63),
        Param("dead_zone", 0.1, "share of a stick's way that does nothing", 0.0, 0.9),
        Param("speed", 1.0, "share of the robot's action limits that a stick at its end asks for", 0.01, 1.0),
        Param("joint_speed", 0.5, "rad/s of a stick at its end, for joint_position robots", 0.01, 3.0),
        Param("grip_speed", 2.0, "of the gripper's whole way, 1/s", 0.1, 50.0),
        Param("silence_s", 0.5, "silence of the commanding device after which the arm is held", 0.1, 5.0),
    )

    def __init__(self) -> None:
        super().__init__()
        self._command = self.create_publisher(Command, "teleop_command", RELIABLE)
        self._intervention = self.create_publisher(InterventionState, "intervention", LATCHED)
        self._estop = self.create_publisher(Bool, "estop", RELIABLE)
        self.create_service(SetBool, "takeover", self._on_takeover)
        self._timer = None
        self._sequence = 0
        self._said: tuple[object, ...] = ()

    def setup(self) -> None:
        self._robot = load_robot(self.param("robot"))
        self._teleop = Teleop(self._settings(self._robot))
        names = self._robot.action.names
        self._mappings: dict[Device, Mapping] = {
            "joy": self._mapping(),
            # The keyboard program always sends the default layout, whatever gamepad is in use.
            "keyboard": Mapping(len(names), default_axes(names), dead_zone=0.0),
        }
        self._joints, self._episode, self._help = JointReader(self._robot), None, ""
        # Best effort hears every joystick driver, whatever it offers; such a driver repeats itself.
        joy = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        for topic, device, profile in (("joy", "joy", joy), ("keyboard_joy", "keyboard", RELIABLE)):
            callback = self.guarded(lambda message, device=device: self._on_joy(device, message))
            self.create_subscription(Joy, topic, callback, profile)
        self.create_subscription(Command, "script_command", self.guarded(self._on_script), RELIABLE)
        self.create_subscription(Command, "proposed_command", self.guarded(self._on_proposed), RELIABLE)
        self.create_subscription(Task, "task", self.guarded(self._on_task), LATCHED)
        self.create_subscription(HelpRequest, "help", self.guarded(self._on_help), RELIABLE)
        topic = self._robot.joints.topic
        self.create_subscription(JointState, topic, self.guarded(self._on_joints), SENSOR)

    def _settings(self, robot: RobotConfig) -> TeleopSettings:
        size, limits = len(robot.action.names), robot.limits
        if robot.action.kind == "joint_position" and len(robot.joints.names) != size - 1:
            raise ConfigError(
                mismatch(f"robot {robot.name}", "action.names", "one per joint, then the gripper", size)
            )
        return TeleopSettings(
            kind=robot.action.kind,
            period_s=1.0 / robot.rate_hz,
            low=np.array(limits.action_low, np.float32),
            high=np.array(limits.action_high, np.float32),
            action_step=np.array(limits.action_step or [0.0] * size, np.float32),
            lead=np.array(limits.lead or [0.0] * size, np.float32),
            state_s=robot.watchdog.state_s,
            **{name: self.param(name) for name in ("speed", "joint_speed", "grip_speed", "silence_s")},
        )

    def _mapping(self) -> Mapping:
        names = self._robot.action.names
        return Mapping(
            size=len(names),
            axes=parse_axes(self.param("axes"), names),
            deadman=self.param("deadman_button"),
            estop=self.param("estop_button"),
            grip_close=self.param("close_button"),
            grip_open=self.param("open_button"),
            dead_zone=self.param("dead_zone"),
        )

    def start(self) -> None:
        self._announce()
        self._timer = self.create_timer(1.0 / self._robot.rate_hz, self.guarded(self._tick))

    def stop(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def status(self) -> dict[str, object]:
        teleop = self._teleop
        facts = {
            "commands": teleop.device or "policy",
            "takeovers": teleop.takeovers,
            "refused": teleop.refused,
        }
        lost = f"{teleop.device}: silent, the arm is held" if teleop.lost else ""
        return {**facts, "warning": lost or self._help}

    def _on_joy(self, device: Device, message: Joy) -> None:
        hands = self._mappings[device].read(message.axes, message.buttons)
        if self._teleop.on_hands(device, hands, self.monotonic()):
            self._stop_everything(f"{device}: e-stop pressed")
        self._announce()

    def _on_script(self, message: Command) -> None:
        if message.kind == Command.STOP:
            self._stop_everything("script: stop")
        elif message.kind == Command.MOVE and list(message.names) not in ([], self._robot.action.names):
            self.get_logger().warning(
                mismatch("script_command", "names", self._robot.action.names, list(message.names)),
                throttle_duration_sec=1.0,
            )
        else:
            values = message.values if message.kind == Command.MOVE else None
            self._teleop.on_script(values, self.monotonic())
        self._announce()

    def _on_takeover(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if not self.active:
            response.success, response.message = False, "teleop is not active"
            return response
        now = self.monotonic()
        refusal = self._teleop.take_over(now) if request.data else self._teleop.hand_back()
        response.success, response.message = not refusal, refusal
        self._announce()
        return response

    def _on_proposed(self, message: Command) -> None:
        if message.kind == Command.MOVE and len(message.values) == len(self._robot.action.names):
            self._teleop.on_gripper_command(message.values[-1])

    def _on_task(self, message: Task) -> None:
        if message.active and message.episode_id != self._episode:
            self._episode = message.episode_id
            self._teleop.new_episode()
            self._announce()
        if not message.active:
            self._help = ""

    def _on_help(self, message: HelpRequest) -> None:
        """Told until somebody takes over or the episode ends."""
        if message.episode_id == self._episode and self._teleop.device is None:
            self._help = f"help wanted at step {message.step}: {message.reason}"
            self.get_logger().warning(self._help)

    def _on_joints(self, message: JointState) -> None:
        joint_position = self._robot.action.kind == "joint_position"
        try:
            arm = self._joints.values(message, "position", self._robot.joints.names if joint_position else [])
            pose = np.append(arm, self._joints.opening(message))
        except DataError as error:
            # Some drivers publish arm and gripper apart; without a whole pose the arm is held.
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        if not joint_position:
            pose = np.append(np.zeros(len(self._robot.action.names) - 1), pose[-1:])
        self._teleop.on_measured(pose, self.monotonic())

    def _tick(self) -> None:
        step = self._teleop.tick(self.monotonic())
        if step is not None:
            self._publish(step)
        self._announce()

    def _publish(self, step: HumanStep) -> None:
        self._sequence += 1
        message = Command(
            kind=Command.HOLD if step.values is None else Command.MOVE,
            names=self._robot.action.names,
            values=[] if step.values is None else step.values.tolist(),
            source="human",
            sequence=self._sequence,
            chunk_id=-1,
            reason=step.reason,
        )
        message.header.stamp, message.header.frame_id = self.stamp(), self._robot.frame
        self._command.publish(message)

    def _stop_everything(self, why: str) -> None:
        self._estop.publish(Bool(data=True))
        self.get_logger().error(why, throttle_duration_sec=1.0)

    def _announce(self) -> None:
        """`intervention` when it changed, and the core's notes to the log."""
        teleop = self._teleop
        state = (teleop.device is not None, teleop.device or "", teleop.takeovers)
        if state != self._said:
            self._said = state
            self._help = "" if state[0] else self._help
            message = InterventionState(active=state[0], device=state[1], takeovers=state[2])
            message.header.stamp = self.stamp()
            self._intervention.publish(message)
        for note in teleop.notes:
            self.get_logger().info(note)
        teleop.notes.clear()


def main() -> None:
    run(TeleopNode)
