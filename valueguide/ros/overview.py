"""`Overview`: what a running graph says about itself, as plain facts and as lines of text. No rclpy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from valueguide.ros.messages import stamp_ns

#: Seconds over which rates are counted, and after which a node counts as silent.
_WINDOW_S, _SILENT_S = 5.0, 1.0
_SAFETY = {0: "ok", 1: "HOLDING", 2: "STOPPED"}
_LEVELS = {0: "ok", 1: "warning", 2: "error", 3: "stale"}
_DECISIONS, _SHOWN = 50, 6


@dataclass
class _Topic:
    count: int = 0
    times: deque[float] = field(default_factory=lambda: deque(maxlen=1000))


@dataclass
class _Node:
    state: str = "inactive"
    beat: float | None = None
    level: str = ""
    message: str = ""


class Overview:
    """Feed it messages; `now` is monotonic seconds, clock_ns the ROS time of the graph."""

    def __init__(self, namespace: str, now: float) -> None:
        self.namespace = "/" + namespace.strip("/")
        self._start = now
        self._topics: dict[str, _Topic] = {}
        self._nodes: dict[str, _Node] = {}
        self._last: dict[str, Any] = {}
        self._decisions: deque[Any] = deque(maxlen=_DECISIONS)
        self._beside: deque[Any] = deque(maxlen=_DECISIONS)
        self._chunk_ages: deque[float] = deque(maxlen=_DECISIONS)
        self._readers: dict[str, Callable[[Any, float, int], None]] = {
            "heartbeat": self._on_heartbeat,
            "/diagnostics": self._on_diagnostics,
            "decision": lambda message, now, clock_ns: self._decisions.append(message),
            "shadow_decision": lambda message, now, clock_ns: self._beside.append(message),
            "chunk": self._on_chunk,
        }

    @property
    def silent(self) -> bool:
        """True while no node was heard."""
        return not self._nodes

    def count(self, topic: str, now: float) -> None:
        """A message on a topic of which only the rate counts."""
        entry = self._topics.setdefault(topic, _Topic())
        entry.count += 1
        entry.times.append(now)

    def on(self, topic: str, message: Any, now: float, clock_ns: int) -> None:
        """A message. topic: relative to the namespace, as in docs/ros.md."""
        if topic not in ("heartbeat", "/diagnostics"):
            self.count(topic, now)
        reader = self._readers.get(topic)
        if reader is None:
            self._last[topic] = message
        else:
            reader(message, now, clock_ns)

    def _on_heartbeat(self, message: Any, now: float, clock_ns: int) -> None:
        node = self._nodes.setdefault(self._short(message.node), _Node())
        node.state, node.beat = message.state, now

    def _on_diagnostics(self, message: Any, now: float, clock_ns: int) -> None:
        # /diagnostics is one topic for all namespaces and for nodes that are not ours.
        prefix = self.namespace.rstrip("/") + "/"
        for status in message.status:
            name = status.name[len(prefix) :]
            if not status.name.startswith(prefix) or "/" in name or " " in name or ":" in name:
                continue
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            node = self._nodes.setdefault(name, _Node())
            node.level, node.message = _LEVELS.get(level, str(level)), status.message

    def _on_chunk(self, message: Any, now: float, clock_ns: int) -> None:
        self._chunk_ages.append((clock_ns - stamp_ns(message)) / 1e9)

    def _short(self, name: str) -> str:
        return name.rsplit("/", 1)[-1] if name.startswith("/") else name

    def facts(self, now: float) -> dict[str, Any]:
        """Everything as JSON; unknown values are None. Times in seconds, latencies in milliseconds."""
        return {
            "namespace": self.namespace,
            "nodes": [self._node(name, node, now) for name, node in sorted(self._nodes.items())],
            "topics": [self._rate(name, topic, now) for name, topic in sorted(self._topics.items())],
            "commander": self._commander(),
            "task": self._task(),
            "progress": self._progress(),
            "safety": self._safety(),
            "latency_ms": self._latencies(),
            "executor": self._executor(),
            "help": self._help(),
            "critic": self._critic(),
            "decisions": [self._decision(message) for message in list(self._decisions)[-_SHOWN:]],
        }

    def _node(self, name: str, node: _Node, now: float) -> dict[str, Any]:
        age = None if node.beat is None else now - node.beat
        state = node.state if age is None or age < _SILENT_S else "SILENT"
        message = "" if node.level in ("", "ok") else f"{node.level}: {node.message}"
        return {"name": name, "state": state, "heartbeat_age_s": age, "diagnostic": message}

    def _rate(self, name: str, topic: _Topic, now: float) -> dict[str, Any]:
        window = min(_WINDOW_S, max(now - self._start, 1e-3))
        recent = sum(time > now - window for time in topic.times)
        return {
            "topic": name,
            "rate_hz": recent / window,
            "age_s": now - topic.times[-1],
            "messages": topic.count,
        }

    def _commander(self) -> str | None:
        human, executor = self._last.get("intervention"), self._last.get("executor_state")
        if human is not None and human.active:
            return f"human ({human.device})"
        return None if executor is None else executor.commander

    def _task(self) -> dict[str, Any] | None:
        task = self._last.get("task")
        if task is None:
            return None
        takeovers = self._last["intervention"].takeovers if "intervention" in self._last else 0
        return {
            "active": task.active,
            "instruction": task.instruction,
            "mode": task.mode,
            "episode": task.episode_id,
            "takeovers": takeovers,
            "result": task.reason if task.finished else "",
        }

    def _progress(self) -> dict[str, Any] | None:
        found = self._last.get("progress")
        if found is None:
            return None
        value = None if math.isnan(found.value) else found.value
        return {"value": value, "status": found.status, "success": found.success, "failure": found.failure}

    def _safety(self) -> dict[str, Any] | None:
        found = self._last.get("safety_state")
        if found is None:
            return None
        force = None if math.isnan(found.contact_force) else found.contact_force
        return {
            "state": _SAFETY.get(found.state, str(found.state)),
            "reason": found.reason,
            "passed": found.passed,
            "rejected": found.rejected,
            "contact_force_n": force,
        }

    def _latencies(self) -> dict[str, dict[str, float] | None]:
        series = {
            "policy": [d.policy_s for d in self._decisions],
            "critic": [d.critic_s for d in self._decisions],
            "decision": [d.latency_s for d in self._decisions],
            "chunk age": list(self._chunk_ages),
        }
        return {name: _summary(values) for name, values in series.items()}

    def _executor(self) -> dict[str, Any] | None:
        found = self._last.get("executor_state")
        if found is None:
            return None
        names = ("state", "delay_s", "delay_steps", "steps", "holds", "late", "dropped")
        return {name: getattr(found, name) for name in names}

    def _help(self) -> dict[str, Any] | None:
        """The last request for the operator in the running episode."""
        found, task = self._last.get("help"), self._last.get("task")
        if found is None or task is None or not task.active or found.episode_id != task.episode_id:
            return None
        return {"step": found.step, "reason": found.reason}

    def _critic(self) -> dict[str, Any] | None:
        found = self._last.get("critic_version")
        if found is None:
            return None
        names = ("version", "number", "role", "shadow", "shadow_number")
        return {**{name: getattr(found, name) for name in names}, **self._agreement(found.shadow)}

    def _agreement(self, shadow: str) -> dict[str, int]:
        """Of the last decisions that both made, how many they made alike."""
        chosen = {(d.episode_id, d.chunk_id): d.preferred for d in self._decisions}
        both = [
            d for d in self._beside if d.critic_version == shadow and (d.episode_id, d.chunk_id) in chosen
        ]
        alike = sum(d.preferred == chosen[d.episode_id, d.chunk_id] for d in both)
        return {"shadow_scored": len(both), "shadow_agrees": alike}

    def _decision(self, message: Any) -> dict[str, Any]:
        values = [None if math.isnan(value) else float(value) for value in message.scores.values]
        return {
            "chunk": message.chunk_id,
            "index": message.index,
            "preferred": message.preferred,
            "reason": message.reason,
            "scores": values,
        }


def _summary(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"last": 1e3 * values[-1], "median": 1e3 * median(values), "largest": 1e3 * max(values)}


def render(facts: dict[str, Any]) -> list[str]:
    """The facts as lines of text."""
    task, progress, safety = facts["task"], facts["progress"], facts["safety"]
    lines = [f"valueguide top   namespace {facts['namespace']}", ""]
    if task is None:
        lines.append("task       not heard")
    else:
        state = "running" if task["active"] else f"over: {task['result']}" if task["result"] else "idle"
        where = f"episode {task['episode']}, {task['mode'] or '-'}, takeovers {task['takeovers']}"
        lines.append(f"task       {task['instruction'] or '-'}   ({where}; {state})")
    lines.append(f"commands   {facts['commander'] or 'not heard'}")
    lines.append(f"progress   {_progress_text(progress)}")
    lines.append(f"safety     {_safety_text(safety)}")
    if facts["help"] is not None:
        lines.append(f"help       WANTED at step {facts['help']['step']}: {facts['help']['reason']}")
    lines += ["", *_executor_lines(facts["executor"]), *_critic_lines(facts["critic"])]
    lines += _latency_lines(facts["latency_ms"])
    lines += ["", f"{'node':<16}{'state':<12}{'heartbeat':>10}   diagnostics"]
    for node in facts["nodes"]:
        age = node["heartbeat_age_s"]
        beat = "never" if age is None else f"{age:.1f} s"
        lines.append(f"{node['name']:<16}{node['state']:<12}{beat:>10}   {node['diagnostic']}".rstrip())
    lines += ["", f"{'topic':<24}{'Hz':>8}{'last':>10}{'messages':>10}"]
    for topic in facts["topics"]:
        rate, age, count = topic["rate_hz"], topic["age_s"], topic["messages"]
        lines.append(f"{topic['topic']:<24}{rate:>8.1f}{f'{age:.1f} s':>10}{count:>10}")
    lines += ["", "last decisions", *(_decision_line(d) for d in facts["decisions"][::-1])]
    return lines if facts["decisions"] else [*lines, "none yet"]


def _progress_text(progress: dict[str, Any] | None) -> str:
    if progress is None:
        return "not heard"
    if progress["value"] is None:
        return f"unknown ({progress['status']})"
    done = round(20 * min(max(progress["value"], 0), 1))
    verdict = "   success" if progress["success"] else "   failure" if progress["failure"] else ""
    return f"[{'#' * done}{'.' * (20 - done)}] {progress['value']:.0%}{verdict}"


def _safety_text(safety: dict[str, Any] | None) -> str:
    if safety is None:
        return "not heard"
    force = safety["contact_force_n"]
    newtons = "" if force is None else f", {force:.1f} N"
    counts = f"   (passed {safety['passed']}, rejected {safety['rejected']}{newtons})"
    return f"{safety['state']} {safety['reason']}".rstrip() + counts


def _executor_lines(executor: dict[str, Any] | None) -> list[str]:
    if executor is None:
        return ["executor   not heard"]
    delay = f"delay {1e3 * executor['delay_s']:.0f} ms = {executor['delay_steps']} steps"
    counts = ", ".join(f"{name} {executor[name]}" for name in ("steps", "holds", "late", "dropped"))
    return [f"executor   {executor['state']}, {delay}; {counts}"]


def _critic_lines(critic: dict[str, Any] | None) -> list[str]:
    if critic is None:
        return ["critic     not heard"]
    name = _version_text(critic["version"], critic["number"])
    serving = f"{name}, {critic['role']}" if name else "none"
    beside = _version_text(critic["shadow"], critic["shadow_number"])
    if not beside:
        return [f"critic     {serving}"]
    agrees = f"agrees in {critic['shadow_agrees']} of the last {critic['shadow_scored']}"
    return [f"critic     {serving}; in shadow {beside}, {agrees}"]


def _version_text(version: str, number: int) -> str:
    return f"version {number} ({version})" if number else version


def _latency_lines(latencies: dict[str, dict[str, float] | None]) -> list[str]:
    known = {name: found for name, found in latencies.items() if found is not None}
    rows = [f"{name} {found['last']:.0f} ({found['median']:.0f})" for name, found in known.items()]
    return ["latency    ms, last (median): " + (", ".join(rows) or "none yet")]


def _decision_line(decision: dict[str, Any]) -> str:
    scores = " ".join("nan" if value is None else f"{value:.3f}" for value in decision["scores"])
    preferred = decision["preferred"]
    wish = "" if preferred in (-1, decision["index"]) else f", preferred {preferred}"
    choice = f"candidate {decision['index']}{wish}  {decision['reason']}"
    return f"  chunk {decision['chunk']:>4}  {choice}  {scores}".rstrip()
