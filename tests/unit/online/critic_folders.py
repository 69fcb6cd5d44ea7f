"""Critic folders that are complete by their hashes, without a network in them."""

from __future__ import annotations

import json
from pathlib import Path

from valueguide.critics.manifest import CONFIG, FORMAT, MANIFEST, WEIGHTS, digest, sha256


def write_critic(folder: Path, number: int, size: int = 100) -> str:
    """`size` bytes of weights that go by the number; returns the version."""
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(bytes([number % 256]) * size)
    (folder / CONFIG).write_text(f"number: {number}\n")
    files = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}
    manifest = {
        "format": FORMAT,
        "version": digest(files)[:12],
        "files": files,
        "normalizers": {},
        "instructions": [],
        "step": number,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return str(manifest["version"])
