"""The critic in service, its services, and the way back to the one before. For `policy` and `reranker`."""

from __future__ import annotations

from typing import Any

from std_srvs.srv import SetBool, Trigger
from valueguide_msgs.msg import CriticVersion
from valueguide_msgs.srv import LoadCritic

from valueguide.cli.common import shipped
from valueguide.config.robot import RobotConfig
from valueguide.errors import ValueguideError
from valueguide_nodes.base import LATCHED, VgNode

NONE = "none"


def checkpoint(name: str, kind: str) -> str:
    """A parameter as a path: empty for the shipped image checkpoint, `wxai-state` for that suite's."""
    return shipped(name or "wxai", kind) if name in ("", "wxai", "wxai-state") else name


class CriticSlot:
    """Loads beside the critic in service and swaps in one assignment, so no decision sees half a critic."""

    def __init__(self, node: VgNode, robot: RobotConfig, path: str, device: str, shadow: bool) -> None:
        self._node, self._robot, self._device = node, robot, device
        self.shadow = shadow
        self.critic: Any = None
        self._path = ""
        self._previous: tuple[Any, str] | None = None
        self._versions = node.create_publisher(CriticVersion, "critic_version", LATCHED)
        node.create_service(LoadCritic, "load_critic", self._on_load)
        node.create_service(Trigger, "rollback_critic", self._on_rollback)
        node.create_service(SetBool, "set_shadow", self._on_shadow)
        if path != NONE:
            self._swap(self._load(path), path)
        self._tell()

    def _load(self, path: str) -> Any:
        from valueguide.critics.scorer import LearnedCritic

        critic = LearnedCritic.load(path, self._device)
        sizes = {name: (camera.height, camera.width) for name, camera in self._robot.cameras.items()}
        critic.check_compatible(
            action_names=tuple(self._robot.action.names), cameras=sizes, state_dim=len(self._robot.state)
        )
        return critic

    def _swap(self, critic: Any, path: str) -> None:
        self._previous = (self.critic, self._path) if self.critic is not None else None
        self.critic, self._path = critic, path

    def _tell(self) -> None:
        role = "none" if self.critic is None else "shadow" if self.shadow else "active"
        message = CriticVersion(
            version=self.critic.version if self.critic else "",
            path=self._path,
            role=role,
            previous=self._previous[0].version if self._previous else "",
        )
        message.header.stamp = self._node.stamp()
        self._versions.publish(message)

    def _on_load(self, request: Any, response: Any) -> Any:
        try:
            critic = self._load(request.path)
            executed = getattr(self.critic, "executed_length", critic.executed_length)
            if critic.executed_length != executed:
                raise ValueguideError(
                    f"critic {request.path}: expected one that scores {executed} steps, "
                    f"found {critic.executed_length}"
                )
        except ValueguideError as error:
            response.success, response.message = False, str(error)
            return response
        self._swap(critic, request.path)
        self.shadow = bool(request.shadow)
        self._tell()
        response.success, response.version, response.message = True, critic.version, "in service"
        return response

    def _on_rollback(self, request: Any, response: Any) -> Any:
        if self._previous is None:
            response.success, response.message = False, "no critic before this one"
            return response
        self._swap(*self._previous)
        self._tell()
        response.success, response.message = True, self.critic.version
        return response

    def _on_shadow(self, request: Any, response: Any) -> Any:
        self.shadow = bool(request.data)
        self._tell()
        response.success, response.message = True, "shadow" if self.shadow else "active"
        return response
