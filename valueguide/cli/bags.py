"""Bags where a command wants a dataset: imported once, beside what the command writes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from valueguide.data.layout import read_json, write_json
from valueguide.errors import ConfigError, DataError, mismatch

#: In the imported dataset's folder: the bag's files, name and size each.
_ORIGIN = "imported_from.json"


def is_bag(path: Path) -> bool:
    """An .mcap file, or a folder that holds some and is no dataset."""
    return path.suffix == ".mcap" or (not (path / "meta").is_dir() and any(path.glob("*.mcap")))


def imported_bag(bag: Path, target: Path, robot: str = "", namespace: str | None = None) -> Path:
    """The dataset `target` with the bag's episodes; one that an earlier call made is left as it is.

    robot, namespace: where the bag does not say, as in `valueguide bag import`. `target` appears whole, by a
    rename. Raises DataError for a damaged bag or one without finished episodes, ConfigError when `target`
    was made from another bag.
    """
    from valueguide.config.robot import load_robot
    from valueguide.ros.bag_import import import_bag

    files = sorted(bag.glob("*.mcap")) if bag.is_dir() else [bag]
    if not all(path.exists() for path in files):
        raise DataError(mismatch(str(bag), "bag", "a .mcap file or a folder with some", "none"))
    origin = {"files": [[path.name, path.stat().st_size] for path in files]}
    if target.exists():
        found = read_json(target / _ORIGIN)
        if found != origin:
            hint = "Use a new --out"
            raise ConfigError(mismatch(str(target), "bag", origin["files"], found.get("files"), hint))
        return target
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    result: dict[str, Any] = import_bag(
        bag, draft, robot=load_robot(robot) if robot else None, namespace=namespace
    )
    for line in result["dropped"]:
        print(line, file=sys.stderr)
    if not result["episodes"]:
        raise DataError(mismatch(str(bag), "finished episodes", "one or more", "none"))
    write_json(draft / _ORIGIN, origin)
    draft.rename(target)
    return target
