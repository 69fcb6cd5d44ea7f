"""The critic in service, how another takes its place, and the one that scores beside it in shadow.

For `policy` and `reranker`. Critics come from the parameter `critic`, the service `load_critic`, or a folder
of versions (`critic_versions`), which is followed while the node runs. All loading is done in one thread of
its own; the decision loop only reads what serves, which changes in one assignment.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger
from valueguide_msgs.msg import CriticVersion
from valueguide_msgs.srv import LoadCritic

from valueguide.cli.common import shipped
from valueguide.config.robot import RobotConfig
from valueguide.errors import CheckpointError, ValueguideError, mismatch
from valueguide.online.follow import Held, VersionFollower
from valueguide.types import Candidates, Observation
from valueguide_nodes.base import LATCHED, Param, VgNode

NONE = "none"
#: Of threads that must not take the processor from decisions.
NICE = 10
PARAMETERS = (
    Param("critic_versions", "", "folder of critic versions to follow while running; empty: none"),
    Param("versions_s", 1.0, "seconds between looks at that folder", 0.05, 3600.0),
)


def checkpoint(name: str, kind: str) -> str:
    """A parameter as a path: empty, "wxai" and "wxai-state" name the shipped ones."""
    return shipped(name or "wxai", kind) if name in ("", "wxai", "wxai-state") else name


def lower_priority() -> None:
    """Of the calling thread alone."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class Service(NamedTuple):
    """What scores. held: where it is a version of the folder."""

    critic: Any
    path: str
    held: Held[Any] | None = None


class CriticSlot:
    """Loads beside the critic in service and swaps in one assignment, so no decision sees half a critic.

    offered: False for a node that leaves scoring to another; it then holds no critic and offers no service.
    Made and begun (`begin`) where the node configures; ended by `close`. Raises ValueguideError when `path`
    cannot be used and no version of the folder can.
    """

    def __init__(self, node: VgNode, robot: RobotConfig, path: str, offered: bool = True) -> None:
        self._node, self._robot, self._offered = node, robot, offered
        self.shadow: bool = node.param("shadow")
        self._service: Service | None = None
        self._before: Service | None = None
        self._seen: tuple[frozenset[str], bool] | None = None
        self._trial: tuple[Observation, Candidates] | None = None
        self._swapping, self._closed, self._told = threading.Lock(), threading.Event(), ""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        root = node.param("critic_versions") if offered else ""
        self._follower: VersionFollower[Any] | None = VersionFollower(root, self._load) if root else None
        self._poll()
        if self._service is None and offered and path != NONE:
            self._swap(Service(self._load(path), path))

    def begin(self, cameras: set[str], privileged: bool) -> None:
        """Offer the services and follow the folder. No critic is loaded from now on that needs other cameras
        than these, or the simulator's state where `privileged` is False."""
        self._seen = (frozenset(cameras), privileged)
        if not self._offered:
            return
        node, group = self._node, MutuallyExclusiveCallbackGroup()
        self._versions = node.create_publisher(CriticVersion, "critic_version", LATCHED)
        # A group of their own: while one waits for a critic to load, the node's heart goes on beating.
        self._services = [
            node.create_service(kind, name, answer, callback_group=group)
            for kind, name, answer in (
                (LoadCritic, "load_critic", self._on_load),
                (Trigger, "rollback_critic", self._on_rollback),
                (SetBool, "set_shadow", self._on_shadow),
            )
        ]
        self._thread = threading.Thread(target=self._loop, daemon=True, name="critics")
        self._tell()
        self._thread.start()

    @property
    def needs(self) -> tuple[set[str], bool]:
        """(cameras, whether the simulator's state) of all critics that are loaded."""
        beside = self.beside
        specs = [c.spec for c in (self.critic, beside.content if beside else None) if c is not None]
        cameras = {name for spec in specs for name in spec.cameras}
        return cameras, any(spec.environment_state_dim for spec in specs)

    # For the decision loop.

    @property
    def critic(self) -> Any:
        """What scores now, or None. Read it once a decision: it may be another one the next time."""
        service = self._service
        return service.critic if service else None

    @property
    def beside(self) -> Held[Any] | None:
        """The version in shadow."""
        return self._follower.shadow if self._follower else None

    def decide[Made](self, by: Callable[[Any], Made]) -> tuple[Any, Made]:
        """(critic or None, what `by` made of it).

        A version of the folder that fails, whatever it throws, where the critic before it does not, gives way
        to that one for good. A critic that was asked for by name stays. Raises what `by` raised.
        """
        service = self._service
        critic = service.critic if service else None
        try:
            return critic, by(critic)
        except Exception as error:
            other = self._instead_of(service)
            if service is None or other is None:
                raise
            try:
                made = by(other.critic)
            except Exception:
                raise error from None  # it is not the critic's fault
            self._give_way(service, other, f"{type(error).__name__}: {error}")
            return other.critic, made

    def remember(self, observation: Observation, candidates: Candidates) -> None:
        """The last decision's input; the next critic must score it before it serves."""
        self._trial = (observation, candidates)

    def refuse_shadow(self, held: Held[Any], reason: str) -> None:
        """The version in shadow could not score: it is scored no more."""
        self._jobs.put(lambda: self._refuse(lambda follower: follower.refuse("shadow", held, None, reason)))

    def status(self) -> dict[str, Any]:
        """For diagnostics."""
        service, beside = self._service, self.beside
        found: dict[str, Any] = {"critic": service.critic.version if service else NONE}
        if self._follower is not None:
            found["serving"] = service.held.number if service and service.held else NONE
            found["in_shadow"] = beside.number if beside else NONE
            found["warning"] = self._trouble
        return found

    def close(self) -> None:
        """Returns after 2 s at most, also in the middle of loading."""
        self._closed.set()
        if self._thread is None:
            return
        self._jobs.put(lambda: None)
        self._thread.join(timeout=2.0)
        for service in self._services:
            self._node.destroy_service(service)

    def _instead_of(self, service: Service | None) -> Service | None:
        """What else could score: a critic that came meanwhile, or the one before a version of the folder."""
        with self._swapping:
            if service is not self._service:
                return self._service
            return self._before if service is not None and service.held is not None else None

    def _give_way(self, service: Service, other: Service, reason: str) -> None:
        with self._swapping:
            if service is not self._service:
                return
            self._service, self._before = other, None
        held = service.held
        if held is not None:
            self._jobs.put(
                lambda: self._refuse(lambda follower: follower.refuse("serving", held, other.held, reason))
            )

    # In the thread that loads; before it begins, in the one that configures the node.

    def _loop(self) -> None:
        lower_priority()
        period = self._node.param("versions_s") if self._follower else None
        while not self._closed.is_set():
            try:
                try:
                    self._jobs.get(timeout=period)()
                except queue.Empty:
                    self._poll()
            except Exception as error:  # the critic in service goes on, and so must this thread
                if not self._closed.is_set():
                    self._node.get_logger().error(f"critics: {type(error).__name__}: {error}")

    def _poll(self) -> None:
        follower = self._follower
        while follower is not None and not self._closed.is_set():
            held = follower.serving
            changed = follower.poll()
            new = follower.serving
            if new is not None and new is not held:
                self._swap(Service(new.content, str(follower.versions.folder(new.number)), new))
            self._warn()
            if not changed:
                return
            self._tell()

    def _refuse(self, refuse: Callable[[VersionFollower[Any]], None]) -> None:
        assert self._follower is not None
        refuse(self._follower)
        self._warn()
        self._tell()

    @property
    def _trouble(self) -> str:
        """What is wrong with the folder or a version that is to be used, in one line, or ""."""
        return "; ".join(dict(self._follower.troubles).values()) if self._follower else ""

    def _warn(self) -> None:
        trouble = self._trouble
        if trouble and trouble != self._told:
            self._node.get_logger().warning(trouble)
        self._told = trouble

    def _load(self, path: str | Path) -> Any:
        from valueguide.critics.scorer import LearnedCritic

        critic = LearnedCritic.load(path, self._node.param("device"))
        sizes = {name: (camera.height, camera.width) for name, camera in self._robot.cameras.items()}
        critic.check_compatible(
            action_names=tuple(self._robot.action.names), cameras=sizes, state_dim=len(self._robot.state)
        )
        where, steps = f"critic {critic.version}", self._node.param("execute")
        if critic.executed_length != steps:
            raise CheckpointError(mismatch(where, "executed steps", steps, critic.executed_length))
        if self._seen is not None:
            cameras, privileged = self._seen
            hint = "Start the node anew with this critic"
            if not set(critic.spec.cameras) <= cameras:
                found = sorted(critic.spec.cameras)
                raise CheckpointError(mismatch(where, "cameras among", sorted(cameras), found, hint))
            if critic.spec.environment_state_dim and not privileged:
                raise CheckpointError(mismatch(where, "environment state", "none", "it needs it", hint))
        if self._trial is not None:
            # Also allocates, which is not to be paid for by a waiting arm.
            observation, candidates = self._trial
            critic.score(critic.encode(observation), candidates.actions)
        return critic

    def _swap(self, service: Service) -> None:
        with self._swapping:
            self._before, self._service = self._service, service

    def _tell(self) -> None:
        if self._thread is None or self._closed.is_set():
            return
        service, before, beside = self._service, self._before, self.beside
        previous = before.critic.version if before else ""
        message = CriticVersion(
            version=service.critic.version if service else "",
            path=service.path if service else "",
            role="none" if service is None else "shadow" if self.shadow else "active",
            previous=self._follower.previous if self._follower else previous,
            number=service.held.number if service and service.held else 0,
            shadow=beside.content.version if beside else "",
            shadow_number=beside.number if beside else 0,
        )
        message.header.stamp = self._node.stamp()
        self._versions.publish(message)

    # Services: the answer waits for the other thread, the node goes on hearing and beating meanwhile.

    async def _in_thread(self, work: Callable[[], str], response: Any) -> Any:
        """response: success, and as message what `work` returned or why it could not be done."""
        done: Future[tuple[bool, str]] = Future(executor=self._node.executor)

        def job() -> None:
            try:
                found = (True, work())
            except ValueguideError as error:
                found = (False, str(error))
            except Exception as error:  # such as no memory: to be told, not to end the thread
                found = (False, f"{type(error).__name__}: {error}")
            if not self._closed.is_set():  # else there is no service any more that could answer
                done.set_result(found)

        self._jobs.put(job)
        response.success, response.message = await done
        return response

    async def _on_load(self, request: Any, response: Any) -> Any:
        def work() -> str:
            if self._follower is not None:
                root = self._follower.versions.root
                raise ValueguideError(f"critics come from {root}: publish and promote there")
            critic = self._load(request.path)
            self._swap(Service(critic, request.path))
            self.shadow = bool(request.shadow)
            self._tell()
            response.version = critic.version
            return "in service"

        return await self._in_thread(work, response)

    async def _on_rollback(self, request: Any, response: Any) -> Any:
        def work() -> str:
            if self._follower is not None:
                state = self._follower.versions.rollback("service rollback_critic")
                self._poll()
                return f"version {state.serving} serves" + (f"; {self._trouble}" if self._trouble else "")
            if self._before is None:
                raise ValueguideError("no critic before this one")
            self._swap(self._before)
            self._tell()
            return str(self.critic.version)

        return await self._in_thread(work, response)

    def _on_shadow(self, request: Any, response: Any) -> Any:
        self.shadow = bool(request.data)
        self._tell()
        response.success, response.message = True, "shadow" if self.shadow else "active"
        return response
