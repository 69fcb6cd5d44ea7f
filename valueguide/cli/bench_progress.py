"""`valueguide bench progress`: one request an episode, remembered, against asking frame by frame."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from valueguide.errors import ConfigError, mismatch

#: What "Frame 12: 100%" and a line's end take; random weights never end an answer themselves.
_TOKENS_A_FRAME = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `bench` has for this measurement alone."""
    group = parser.add_argument_group("progress")
    group.add_argument("--vlm", default="", help="folder or Hub name (default: a tiny one, random weights)")
    group.add_argument("--clips", type=int, default=3, help="episodes of noise")
    group.add_argument("--clip-frames", type=int, default=8, help="frames of each, the anchor included")
    group.add_argument("--shuffles", type=int, default=2, help="of each clip")


def run(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Raises ConfigError for counts that are too small, CheckpointError for a model that cannot be loaded."""
    from valueguide.bench.progress import ProgressBench, measure
    from valueguide.progress.local import TransformersBackend
    from valueguide.testing.tiny_vlms import build_tiny_vlm

    for option, least in (("clips", 1), ("clip_frames", 2), ("shuffles", 1)):
        value = getattr(args, option)
        if value < least:
            raise ConfigError(mismatch(f"--{option.replace('_', '-')}", "value", f"{least} or more", value))
    settings = ProgressBench(clips=args.clips, frames=args.clip_frames, shuffles=args.shuffles)
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        if args.vlm:
            return measure(TransformersBackend(args.vlm, device=device), settings, Path(folder))
        tiny = build_tiny_vlm("smolvlm", Path(folder) / "model")
        cut = replace(settings, tokens_a_frame=_TOKENS_A_FRAME)
        return measure(TransformersBackend(str(tiny), device=device), cut, Path(folder))
