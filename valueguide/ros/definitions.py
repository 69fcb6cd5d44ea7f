"""The full text of ROS message definitions, as bags embed it: readable without our packages."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from valueguide.errors import EnvironmentSetupError
from valueguide.ros.workspace import INSTALL, WORKSPACE

_NUMBERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
_PRIMITIVES = frozenset(["bool", "byte", "char", "float32", "float64", "string", "wstring", *_NUMBERS])
_SEPARATOR = "=" * 80


@cache
def definition(type_name: str) -> str:
    """The text of `package/msg/Name` followed by that of every message it contains (encoding `ros2msg`).

    Raises EnvironmentSetupError when a package is neither installed nor in this repository.
    """
    parts: list[str] = []
    waiting, seen = [type_name], {type_name}
    while waiting:
        current = waiting.pop(0)
        text = _text(current)
        heading = f"{_SEPARATOR}\nMSG: {current.replace('/msg/', '/')}\n" if parts else ""
        parts.append(heading + text)
        for inner in _contained(current.split("/")[0], text):
            if inner not in seen:
                seen.add(inner)
                waiting.append(inner)
    return "\n".join(parts)


def _text(type_name: str) -> str:
    package, kind, name = type_name.split("/")
    for folder in _package_folders(package):
        path = folder / kind / f"{name}.msg"
        if path.exists():
            return path.read_text()
    raise EnvironmentSetupError(
        f"message {type_name}: expected its definition in an installed ROS 2 package, found none. "
        "Try: uv sync, or source the setup.bash of ROS"
    )


def _package_folders(package: str) -> list[Path]:
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [prefix / "share" / package for prefix in (*prefixes, INSTALL / package, Path(sys.prefix))]
    return [*folders, WORKSPACE / "src" / package]


def _contained(package: str, text: str) -> list[str]:
    """Types of the fields that are messages themselves."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) < 2 or "=" in words[0].replace("<=", ""):
            continue
        base = words[0].split("[")[0].split("<=")[0]
        if base not in _PRIMITIVES:
            names = base.split("/")
            found.append(f"{package if len(names) == 1 else names[0]}/msg/{names[-1]}")
    return found
