"""Critic folders that are complete by their hashes, without a network in them, and versions of such."""

from __future__ import annotations

import json
from pathlib import Path

from valueguide.critics.manifest import CONFIG, FORMAT, MANIFEST, WEIGHTS, digest, sha256
from valueguide.online.versions import CriticVersions

NOON = 1_700_049_600.0  # 2023-11-15T12:00:00Z


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


def versions(tmp_path: Path, count: int, keep: int = 10) -> CriticVersions:
    """1 to `count`, published, none serving; its clock stands at NOON."""
    made = CriticVersions(tmp_path / "versions", keep=keep, clock=lambda: NOON)
    for number in range(1, count + 1):
        with made.draft() as draft:
            write_critic(draft, number)
            assert made.publish(draft) == number
    return made
