"""Asking the operator for help, beside the executor: topic `help`. Nothing here changes what runs.

Whatever goes wrong, a settings file that cannot be read too, is a warning; then help is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from valueguide_msgs.msg import Decision, HelpRequest, Progress, Task

from valueguide.execution.help_calibration import load_help
from valueguide.execution.help_watch import HelpWatch
from valueguide.ros.messages import decision_from, stamp_ns
from valueguide_nodes.base import RELIABLE, VgNode


class HelpAsker:
    """path: of the settings that `valueguide bench help` writes; empty: off, and no method does anything."""

    def __init__(self, node: VgNode, path: str) -> None:
        self._node, self._episode, self._trouble = node, -1, ""
        self._watch: HelpWatch | None = None
        if path:
            self._safely(self._open)(path)

    def _open(self, path: str) -> None:
        self._watch = HelpWatch(load_help(Path(path)))
        self._out = self._node.create_publisher(HelpRequest, "help", RELIABLE)
        for kind, topic, callback in (
            (Decision, "decision", self._on_decision),
            (Progress, "progress", self._on_progress),
        ):
            self._node.create_subscription(kind, topic, self._safely(callback), RELIABLE)

    def begin(self, task: Task) -> None:
        """An episode begins."""
        self._episode = int(task.episode_id)
        self._tell(lambda watch: watch.begin(task.instruction, self._node.now_ns()))

    def end(self) -> None:
        """It is over."""
        self._tell(lambda watch: watch.end())

    def planning(self, request_id: int, step: int) -> None:
        """See `HelpWatch.planning`."""
        self._tell(lambda watch: watch.planning(request_id, step))

    def taken_over(self) -> None:
        """A human commands."""
        self._tell(lambda watch: watch.taken_over())

    def handed_back(self, step: int) -> None:
        """The policy goes on after `step` control steps."""
        self._tell(lambda watch: watch.handed_back(step))

    def status(self) -> dict[str, Any]:
        """For diagnostics: `help`, what was answered last, and how often it was asked for in the episode."""
        if self._watch is None:
            return {"help": "off"} | ({"warning": self._trouble} if self._trouble else {})
        last = self._watch.last
        facts = {"help": last.reason if last else "no decision yet", "help_requests": self._watch.asked}
        return facts | ({"warning": self._trouble} if self._trouble else {})

    def _on_progress(self, message: Progress) -> None:
        self._tell(lambda watch: watch.on_progress(message.value, message.status, stamp_ns(message)))

    def _on_decision(self, message: Decision) -> None:
        if self._watch is None or not self._node.active or message.episode_id != self._episode:
            return
        decision, now = decision_from(message), self._node.now_ns()
        found = self._watch.on_decision(int(message.request_id), decision, message.critic_version, now)
        if found is not None:
            request = HelpRequest(
                episode_id=self._episode,
                step=found.step,
                reason=found.reason,
                value=found.value,
                progress=found.progress,
            )
            request.header.stamp = self._node.stamp()
            self._out.publish(request)
            self._node.get_logger().warning(f"help wanted at step {found.step}: {found.reason}")
        self._trouble = ""

    def _tell(self, what: Callable[[HelpWatch], None]) -> None:
        if self._watch is not None:
            self._safely(what)(self._watch)

    def _safely(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """Whatever it raises is a warning: an arm that moves must not stop because nobody can be asked."""

        def call(argument: Any) -> None:
            try:
                function(argument)
            except Exception as error:
                trouble = f"help: {' '.join(str(error).split()) or type(error).__name__}"
                if trouble != self._trouble:
                    self._node.get_logger().warning(trouble)
                self._trouble = trouble

        return call
