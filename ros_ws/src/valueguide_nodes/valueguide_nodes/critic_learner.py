"""Node `critic_learner`: a critic learns from the recorder's episodes while the graph runs.

Learning is done by `valueguide learner` in a process of its own, at low priority: this node starts it, again
when it dies, says on /diagnostics what it does, and passes on what people want. Nothing in the graph waits
for either; policy and re-ranker read the published versions from the folder `out`/versions.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger
from valueguide_msgs.srv import PromoteCritic

from valueguide.errors import CheckpointError, ConfigError, DataError, EnvironmentSetupError
from valueguide.online.service_files import read_status
from valueguide.online.versions import CriticVersions
from valueguide.ros.supervise import Supervised, spawn
from valueguide_nodes.base import Param, VgNode, run
from valueguide_nodes.critic_slot import checkpoint

_POLL_HZ = 10.0
#: Seconds in which the learner saves and ends, and in which a promotion checks.
_CLOSE_S, _PROMOTE_S = 60.0, 600.0
#: What of the learner's status is told.
_FACTS = (
    "doing",
    "gradient_step",
    "steps_due",
    "saved_step",
    "steps",
    "serving",
    "shadow",
    "newest",
    "check",
)
#: Parameters that are options of `valueguide learner` under the same name.
_OPTIONS = ("updates_per_step", "min_steps", "save_every", "publish_every", "hold_out", "promote", "threads",
            "device")  # fmt: skip


class CriticLearnerNode(VgNode):
    NAME = "critic_learner"
    PARAMETERS = (
        Param("out", "", "the learner's folder, with versions/; a learner that is there is resumed"),
        Param(
            "record", "", "the recorder's folder (its parameter `out`): episodes are taken in as they come"
        ),
        Param("offline", "", "datasets that are imported once, separated by ':'"),
        Param("policy", "", "the policy that works now: folder or hub id; empty: the shipped one"),
        Param("critic", "", "where learning starts: critic folder; empty: the shipped one"),
        Param("updates_per_step", 0.5, "gradient steps for each recorded control step", 0.0, 1000.0),
        Param("min_steps", 500, "recorded control steps before the first gradient step", 0, 10**9),
        Param("save_every", 250, "gradient steps", 1, 10**9),
        Param("publish_every", 500, "gradient steps", 1, 10**9),
        Param("hold_out", 5, "every so manieth episode only checks critics", 2, 10**6),
        Param("promote", "manual", "manual, or after:N, N episodes in shadow"),
        Param("limits", "", "of the checks: 'rank_drop=0.1 min_episodes=20'"),
        Param("options", "", "more options of `valueguide learner`, as on a command line"),
        Param("threads", 1, "of torch on the CPU", 1, 1024),
        Param("device", "cpu", "torch device of the learner"),
        Param("nice", 10, "how much lower the learner's priority is", 0, 19),
    )

    def __init__(self) -> None:
        super().__init__()
        self.create_service(SetBool, "~/pause", self.on_pause)
        self.create_service(Trigger, "~/rollback", self.on_rollback)
        # A group of its own: while one waits for its check, the node's heart goes on beating.
        group = ReentrantCallbackGroup()
        self.create_service(PromoteCritic, "~/promote", self.on_promote, callback_group=group)

    def setup(self) -> None:
        for name, what in (("out", "a folder"), ("record", "the recorder's folder")):
            if not self.param(name):
                raise ConfigError(f"critic_learner: {name}: expected {what}, found nothing")
        self.out = Path(self.param("out")).resolve()
        self.versions = CriticVersions(self.out / "versions")
        try:
            more = shlex.split(self.param("options"))
        except ValueError as error:
            raise ConfigError(f"critic_learner: options: {error}") from error
        self.child = Supervised(self.line(more), self.get_logger().info, self.param("nice"))
        self.promotion: tuple[subprocess.Popen[str], Future, float] | None = None

    def line(self, more: list[str]) -> list[str]:
        """How the learner is started."""
        offline = [folder for folder in self.param("offline").split(os.pathsep) if folder]
        return [
            *_valueguide("learner"),
            *("--out", str(self.out), "--parent", str(os.getpid())),
            *("--dataset", str(Path(self.param("record")).resolve() / "dataset")),
            *(word for folder in offline for word in ("--offline", folder)),
            *("--policy", checkpoint(self.param("policy"), "policy")),
            *("--critic", checkpoint(self.param("critic"), "critic")),
            *(word for name in _OPTIONS for word in (f"--{name.replace('_', '-')}", str(self.param(name)))),
            *self.limits(),
            *more,
        ]

    def limits(self) -> list[str]:
        return [word for limit in self.param("limits").split() for word in ("--limit", limit)]

    def start(self) -> None:
        self.child.start()
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.timer = self.create_timer(1.0 / _POLL_HZ, self.guarded(self.watch), clock=steady)

    def watch(self) -> None:
        deaths = self.child.deaths
        self.child.poll()
        if self.child.deaths > deaths:
            self.get_logger().error(f"learner: {self.child.problem}; it goes on from what it saved")
        if self.promotion is not None:
            process, done, limit = self.promotion
            if process.poll() is None and self.monotonic() > limit:
                process.kill()
                process.wait()
            if process.poll() is not None:
                self.end_promotion(process, done)

    # What people want.

    def on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """true: the learner saves and ends; false: it goes on."""
        if not self.active:
            response.message = "critic_learner is not active"
            return response
        if request.data:
            self.child.stop()
        else:
            self.child.start()
        response.success, response.message = True, "it saves and pauses" if request.data else "it goes on"
        return response

    async def on_promote(
        self, request: PromoteCritic.Request, response: PromoteCritic.Response
    ) -> PromoteCritic.Response:
        """Checked as `valueguide critics promote` does, in another process: the node goes on meanwhile."""
        response.message = self.refusal(request)
        if response.message:
            return response
        try:
            number = int(request.number) or self.versions.state().shadow
            if number is None:
                response.message = "no version is in shadow"
                return response
            response.success, response.message = await self.begin_promotion(number, request)
            response.serving = self.versions.state().serving or 0
        except (CheckpointError, EnvironmentSetupError) as error:
            response.success, response.message = False, str(error)
        return response

    def refusal(self, request: PromoteCritic.Request) -> str:
        """Why nothing can be promoted now, "" if nothing is against it."""
        if not self.active:
            return "critic_learner is not active"
        if request.force and not request.reason:
            return "force: expected a reason for the history, found none"
        return "another promotion is under way" if self.promotion is not None else ""

    def begin_promotion(self, number: int, request: PromoteCritic.Request) -> Future:
        line = [*_valueguide("critics"), "promote", str(self.versions.root), str(number)]
        line += ["--device", self.param("device"), *self.limits(), *(["--force"] if request.force else [])]
        line += ["--reason", request.reason or "service promote"]
        done = Future(executor=self.executor)
        self.promotion = (spawn(line, self.param("nice")), done, self.monotonic() + _PROMOTE_S)
        return done

    def end_promotion(self, process: subprocess.Popen[str], done: Future) -> None:
        """Answer with the last line that it printed."""
        self.promotion = None
        said = process.communicate()[0].strip().splitlines()
        last = said[-1].removeprefix("error: ") if said else f"exit status {process.returncode}"
        success = process.returncode == 0
        self.get_logger().info(f"promotion {'done' if success else 'refused'}: {last}")
        done.set_result((success, last))

    def on_rollback(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """At once, whatever the learner does: a rollback is for when the arm shakes."""
        if not self.active:
            response.message = "critic_learner is not active"
            return response
        try:
            state = self.versions.rollback("service rollback")
        except CheckpointError as error:
            response.message = str(error)
            return response
        response.success, response.message = True, f"version {state.serving} serves"
        return response

    # The end, and what it says.

    def stop(self) -> None:
        """The learner saves what it knows, for the next activation."""
        self.destroy_timer(self.timer)
        if self.promotion is not None:
            process, done, _ = self.promotion
            process.kill()
            self.end_promotion(process, done)
        if not self.child.close(_CLOSE_S):
            self.get_logger().error(f"learner: not ended within {_CLOSE_S:.0f} s; what it had saved stays")

    def status(self) -> dict[str, Any]:
        child = self.child
        facts: dict[str, Any] = {"pid": child.pid or "", "deaths": child.deaths, "error": child.problem}
        try:
            told = read_status(self.out)
        except DataError:
            return {"doing": "starts", **facts}
        fresh = told["running"] and told["pid"] == child.pid
        if child.pid is not None and not fresh:
            told["doing"] = "starts"
        elif child.pid is None:
            told["doing"] = "waits to be started again" if child.wanted else "paused"
        loss = told["metrics"].get("td_loss")
        return {
            **{name: "" if told[name] is None else told[name] for name in _FACTS},
            **{name: told["episodes"][name] for name in ("learned_from", "held_out")},
            "td_loss": "" if loss is None else f"{loss:.3g}",
            "left_out": len(told["damaged"]),
            "warning": told["problem"] if fresh else "",
            **facts,
        }


def _valueguide(command: str) -> list[str]:
    return [sys.executable, "-m", "valueguide.cli.main", command]


def main() -> None:
    run(CriticLearnerNode)


if __name__ == "__main__":
    main()
