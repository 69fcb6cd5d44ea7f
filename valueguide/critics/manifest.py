"""A critic folder's manifest: what belongs together, by hash. Needs no torch: a robot can check it too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from valueguide.errors import CheckpointError, mismatch

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.yaml", "manifest.json"
FORMAT = "valueguide-critic-1"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete critic folder.

    Raises CheckpointError naming the file that is missing, or that does not match its recorded hash.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a critic folder, found none")
    path = folder / MANIFEST
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(mismatch(str(path), "format", FORMAT, manifest.get("format")))
    for key in ("version", "files", "normalizers", "instructions"):
        if key not in manifest:
            raise CheckpointError(f"{path}: field {key!r} is missing")
    for name in (WEIGHTS, CONFIG):
        wanted, found = str(manifest["files"].get(name)), sha256(folder / name)
        if found != wanted:
            raise CheckpointError(mismatch(str(folder / name), "sha256", wanted[:12], found[:12]))
    if manifest["version"] != digest(manifest["files"])[:12]:
        raise CheckpointError(f"{path}: the version does not belong to the recorded hashes")
    inputs = digest([manifest["normalizers"], manifest["instructions"]])
    if manifest.get("inputs_sha256", inputs) != inputs:
        raise CheckpointError(f"{path}: normalizers or instructions were changed after training")
    return manifest


def digest(value: Any) -> str:
    """sha256 of JSON-serialisable data, 64 hex digits, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON file, found {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def sha256(path: Path) -> str:
    """sha256 of a file's content, 64 hex digits. Raises CheckpointError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, found {error}") from error
