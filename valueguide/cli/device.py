"""`--device`: where a command's models run. One option and one check for all commands."""

from __future__ import annotations

import argparse

from valueguide.errors import ConfigError, mismatch


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="where models run: auto (a GPU when torch has one), cpu, cuda or cuda:N",
    )


def usable_device(name: str) -> str:
    """The torch device that `--device NAME` means on this machine: "cpu", "cuda" or "cuda:N".

    Raises ConfigError that names what there is when this machine has no such device.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    usable = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in usable:
        hint = "" if gpus else "torch sees no GPU here: `valueguide doctor` says more"
        raise ConfigError(
            mismatch("--device", "value", f"one of auto, {', '.join(usable)}", repr(name), hint)
        )
    return name
