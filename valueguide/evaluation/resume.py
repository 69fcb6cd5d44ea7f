"""Long runs keep each finished piece of work as a line of JSON, and go on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from valueguide.errors import ConfigError


def finished_rows(log: Path, plan: dict[str, Any], extensible: Collection[str]) -> list[dict[str, Any]]:
    """The rows that an earlier run of the same plan left in `log`; writes the plan beside it.

    extensible: keys of the plan that may change, because they ask for more of the same. Raises ConfigError
    when the rows were made under another plan.
    """
    rows = _complete_rows(log)
    settings = log.with_name("plan.json")
    if rows and settings.exists():  # without a row, nothing depends on the old settings
        found = json.loads(settings.read_text())
        different = [k for k, v in plan.items() if k not in extensible and found.get(k) != v]
        if different:
            raise ConfigError(
                f"{log.parent}: holds an evaluation with other settings ({', '.join(different)}). "
                "Use another --out"
            )
    whole = settings.with_suffix(".part")
    whole.write_text(json.dumps(plan, indent=1))
    os.replace(whole, settings)
    return rows


def _complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log. A last line without its end, written when the process was killed, is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return [json.loads(line) for line in complete.splitlines()]
