"""`valueguide doctor`: each finding is right, says how to fix it, and only required ones fail."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from valueguide.cli import common, doctor
from valueguide.errors import EnvironmentSetupError


def _parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return parser.parse_args(argv)


def _block(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Importing `name` raises `error`; everything else imports as usual."""
    real = importlib.import_module

    def import_module(module: str, package: str | None = None) -> Any:
        if module == name:
            raise error
        return real(module, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


def _healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check passes at once, without importing or rendering anything."""
    for name in ("python", "package", "rendering", "ros", "gpu", "disk", "checkpoint"):
        monkeypatch.setattr(
            doctor,
            f"check_{name}",
            lambda *args, name=name: doctor.Check(" ".join(map(str, (name, *args))), True, True, "there"),
        )


def test_a_healthy_machine_passes_and_the_result_is_json(monkeypatch, capsys) -> None:
    _healthy(monkeypatch)
    result = doctor.run(_parse())
    names = [check["name"] for check in json.loads(json.dumps(result))["checks"]]
    assert names[0] == "python"
    assert {f"package {module}" for module in doctor.PACKAGES} <= set(names)
    assert {f"checkpoint {s} {k}" for s in ("wxai", "wxai-state") for k in ("policy", "critic")} <= set(names)
    assert "checkpoint wxai progress" in names
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names) and all(line.startswith("ok ") for line in lines)


def test_required_failures_end_in_one_error_after_all_checks(monkeypatch, capsys) -> None:
    _healthy(monkeypatch)
    monkeypatch.setattr(
        doctor, "check_rendering", lambda: doctor.Check("rendering", False, True, "no EGL", "apt")
    )
    monkeypatch.setattr(doctor, "check_gpu", lambda: doctor.Check("GPU", False, False, "none", "buy one"))
    with pytest.raises(EnvironmentSetupError, match=r"1 missing: rendering\b") as caught:
        doctor.run(_parse())
    assert "GPU" not in str(caught.value)
    out = capsys.readouterr().out
    assert "missing  rendering: no EGL (required)\n         fix: apt\n" in out
    assert "missing  GPU: none (optional)\n         fix: buy one\n" in out
    assert "checkpoint wxai-state critic" in out  # it went on to the end


def test_optional_failures_do_not_fail(monkeypatch) -> None:
    _healthy(monkeypatch)
    monkeypatch.setattr(doctor, "check_ros", lambda: doctor.Check("ROS 2", False, False, "no rclpy", "pip"))
    assert {"ROS 2"} == {c["name"] for c in doctor.run(_parse())["checks"] if not c["ok"]}


def test_another_python_is_required_to_change(monkeypatch) -> None:
    assert doctor.check_python().ok
    monkeypatch.setattr(doctor.sys, "version_info", (3, 11, 9))
    check = doctor.check_python()
    assert not check.ok and check.required and "needs 3.12" in check.detail and "uv" in check.fix


def test_packages_are_imported_and_named_by_version() -> None:
    import numpy

    check = doctor.check_package("numpy")
    assert check.ok and check.detail == numpy.__version__


@pytest.mark.parametrize(
    "error", [ImportError("No module named 'zmq'"), OSError("libzmq.so: broken"), AttributeError("eglQuery")]
)
def test_an_absent_or_broken_package_says_what_it_is_for(monkeypatch, error: Exception) -> None:
    _block(monkeypatch, "zmq", error)
    check = doctor.check_package("zmq")
    assert not check.ok and not check.required
    assert str(error) in check.detail and "serving" in check.detail
    assert "valueguide[server]" in check.fix


def test_a_version_outside_the_pin_is_found(monkeypatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "1.0.0")
    check = doctor.check_package("numpy")
    assert not check.ok and check.required
    assert check.detail.startswith("1.0.0, needs ") and ">=1.26" in check.detail


def test_pins_are_those_of_the_project() -> None:
    pins = doctor.pins()
    for distribution, *_ in doctor.PACKAGES.values():
        if distribution not in ("av",):  # comes with lerobot
            assert distribution in pins, distribution


def test_one_frame_is_really_rendered() -> None:
    check = doctor.check_rendering()
    assert check.ok and "128x128" in check.detail, check


def test_rendering_errors_become_a_finding(monkeypatch) -> None:
    import sim.env

    def broken(*args: object) -> None:
        raise RuntimeError("gladLoadGL error\nsecond line")

    monkeypatch.setattr(sim.env, "TabletopEnv", broken)
    check = doctor.check_rendering()
    assert not check.ok and check.required
    assert check.detail == "gladLoadGL error"
    assert "libegl1" in check.fix and "wxai-state" in check.fix


def test_missing_ros_is_optional(monkeypatch) -> None:
    _block(monkeypatch, "rclpy", ModuleNotFoundError("No module named 'rclpy'"))
    check = doctor.check_ros()
    assert not check.ok and not check.required and "valueguide[ros]" in check.fix


def test_ros_needs_the_built_workspace_and_the_profile(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.setattr(doctor.workspace, "is_built", lambda: False)
    check = doctor.check_ros()
    assert not check.ok and not check.required and check.fix == "valueguide ros build"
    monkeypatch.setattr(doctor.workspace, "is_built", lambda: True)
    check = doctor.check_ros()
    assert check.ok and "ros_ws is built" in check.detail and "fastdds_shm.xml" in check.detail
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(tmp_path / "gone.xml"))
    check = doctor.check_ros()
    assert not check.ok and "gone.xml" in check.detail and "FASTDDS_DEFAULT_PROFILES_FILE" in check.fix


def test_disk_is_that_of_the_folder_to_be_made(monkeypatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(folder: Path) -> Any:
        asked.append(folder)
        return usage(100 << 30, 0, 6 << 30)

    monkeypatch.setattr(doctor.shutil, "disk_usage", disk_usage)
    assert doctor.check_disk(tmp_path / "not" / "yet").ok
    assert asked == [tmp_path]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(100 << 30, 0, 1 << 30))
    full = doctor.check_disk(tmp_path)
    assert not full.ok and full.required and "1.0 GiB free" in full.detail


def test_an_unwritable_folder_is_found(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *args: False)
    check = doctor.check_disk(tmp_path)
    assert not check.ok and "not writable" in check.detail


def _checkpoint(root: Path, manifest: str | None = None) -> Path:
    folder = root / "wxai" / "critic"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    files = {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    text = json.dumps({"version": "abc123", "files": files}) if manifest is None else manifest
    (folder / "manifest.json").write_text(text)
    return folder


@pytest.fixture
def shipped(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(common, "CHECKPOINTS", tmp_path)
    return tmp_path


def test_a_whole_checkpoint_is_ok(shipped: Path) -> None:
    _checkpoint(shipped)
    check = doctor.check_checkpoint("wxai", "critic")
    assert check.ok and "abc123" in check.detail


def test_damage_anywhere_in_a_checkpoint_is_found(shipped: Path) -> None:
    weights = _checkpoint(shipped) / "model.safetensors"
    weights.write_bytes(b"weighty")
    check = doctor.check_checkpoint("wxai", "critic")
    assert not check.ok and "model.safetensors is damaged" in check.detail and "git checkout" in check.fix
    weights.unlink()
    assert "model.safetensors: No such file" in doctor.check_checkpoint("wxai", "critic").detail


def test_an_absent_checkpoint_is_optional(shipped: Path) -> None:
    check = doctor.check_checkpoint("wxai", "policy")
    assert not check.ok and not check.required and "manifest.json: No such file" in check.detail


@pytest.mark.parametrize("manifest", ["", "[]", '{"version": "1"}', '{"version": "1", "files": 3}', '"\\xff'])
def test_an_unreadable_manifest_is_a_finding(shipped: Path, manifest: str) -> None:
    _checkpoint(shipped, manifest)
    check = doctor.check_checkpoint("wxai", "critic")
    assert not check.ok and "not a manifest" in check.detail
