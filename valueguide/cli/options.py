"""Options from a YAML file: `--config FILE` stands for the command-line options that the file lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from valueguide.errors import ConfigError, mismatch


def with_config(path: str, arguments: list[str]) -> list[str]:
    """`arguments` with the file's options placed before those typed by hand, which therefore win.

    The file maps option names (`batch_size` or `batch-size`) to a number, a text, true or false, or a
    list for options that may be repeated. Raises ConfigError naming the file when it is no such mapping.
    """
    if not path:
        return arguments
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: expected a readable YAML file, found {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(mismatch(f"--config {path}", "content", "option: value", type(content).__name__))
    options = [text for name, value in content.items() for text in _option(path, str(name), value)]
    # Sub-commands (`train critic`) come first and keep their place.
    words = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return [*arguments[:words], *options, *arguments[words:]]


def _option(path: str, name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list):
        return [text for item in value for text in _option(path, name, item)]
    if not isinstance(value, int | float | str):
        raise ConfigError(mismatch(f"--config {path}", name, "a number, text, true, false or a list", value))
    return [f"--{flag}={value}"]
