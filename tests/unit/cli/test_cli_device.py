"""`--device`: what it means on this machine, who takes it, and what a machine without a GPU answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from valueguide.bench import critic as critic_bench
from valueguide.bench import steering as steering_bench
from valueguide.cli import collect, train_critic, train_policy
from valueguide.cli.device import usable_device
from valueguide.cli.main import main
from valueguide.critics.scorer import LearnedCritic
from valueguide.errors import ConfigError
from valueguide.evaluation import arms

COMMANDS = {
    "eval": ("eval", "--suite", "wxai-state", "--out", "{out}"),
    "collect": ("collect", "--suite", "wxai-state", "--policy", "{out}", "--out", "{out}"),
    "policy": ("train", "policy", "--dataset", "{out}", "--backbone", "{out}", "--out", "{out}"),
    "critic": ("train", "critic", "--dataset", "{out}", "--out", "{out}"),
    "bench": ("bench", "critic"),
    "replay": ("replay", "--dataset", "{out}", "--critic", "{out}", "--out", "{out}"),
}


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_takes_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 0)
    assert (usable_device("auto"), usable_device("cpu")) == ("cpu", "cpu")
    _gpus(monkeypatch, 2)
    names = ("auto", "cpu", "cuda", "cuda:1")
    assert [usable_device(name) for name in names] == ["cuda", "cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize("name", ["cuda:2", "cuda:", "tpu", ""])
def test_what_is_not_there_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _gpus(monkeypatch, 2)
    with pytest.raises(ConfigError) as caught:
        usable_device(name)
    assert str(caught.value) == (
        f"--device: value: expected one of auto, cpu, cuda, cuda:0, cuda:1, found {name!r}"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_gpu_that_is_not_there_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    _gpus(monkeypatch, 0)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main([*(word.format(out=out) for word in COMMANDS[command]), "--device", "cuda"])
    assert stop.value.code == 2 and not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: --device: value: expected one of auto, cpu, found 'cuda'. torch sees no GPU"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of noise, and a folder that is taken for a backbone."""
    folder = tmp_path_factory.mktemp("device")
    critic_bench.random_dataset(folder / "noise", episodes=2, length=6, side=32)
    (folder / "clip").mkdir()
    (folder / "clip" / "config.json").touch()
    return folder


class Arrived(Exception):
    """Holds what a function was called with. A GPU is only pretended, so commands end where they name it."""


def _stop(*arguments: Any, **named: Any) -> Any:
    raise Arrived([*arguments, *named.values()])


@pytest.mark.parametrize(
    ("words", "where", "name"),
    [
        (
            "train critic --dataset {root}/noise --encoder small_film_cnn --out {out}",
            train_critic,
            "CriticTrainer",
        ),
        (
            "train critic --dataset {root}/noise --backbone {root} --out {out}",
            train_critic,
            "vision_features",
        ),
        (
            "train policy --dataset {root}/noise --backbone {root} --out {out}",
            train_policy,
            "vision_features",
        ),
        ("train policy --dataset {root}/noise --backbone {root} --out {out}", train_policy, "make_config"),
        ("bench steering", steering_bench, "encode_once"),
        ("bench critic", critic_bench, "learner_speed"),
        (
            "collect --suite wxai-state --policy p --tasks pick_can --episodes 1 --workers 1 --out {out}",
            arms,
            "load_policy",
        ),
        ("eval --suite wxai-state --policy p --out {out}", arms, "load_policy"),
    ],
    ids=lambda value: " ".join(value.split()[:2]) if isinstance(value, str) else "",
)
def test_what_runs_on_a_device_is_told_which(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, words: str, where: Any, name: str
) -> None:
    _gpus(monkeypatch, 1)
    monkeypatch.setattr(train_policy, "vision_features", lambda d, clip, device: np.zeros((d.rows, 4), "f4"))
    monkeypatch.setattr(where, name, _stop)
    with pytest.raises(Arrived) as arrived:
        main([*words.format(root=root, out=tmp_path / "out").split(), "--device", "cuda:0"])
    assert "cuda:0" in [value for value in arrived.value.args[0] if isinstance(value, str)]


def test_a_teacher_is_loaded_where_its_student_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LearnedCritic, "load", _stop)
    student, args = (
        SimpleNamespace(device=torch.device("cuda:1")),
        SimpleNamespace(algo="distill", teacher="t"),
    )
    with pytest.raises(Arrived) as arrived:
        train_critic._method(args, student, [])  # type: ignore[arg-type]
    assert arrived.value.args[0] == ["t", "cuda:1"]


def test_demonstrations_are_recorded_without_looking_for_a_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Looking for one takes torch, which takes seconds to import."""
    monkeypatch.setattr(collect, "usable_device", None)
    words = "collect --suite wxai-state --tasks press_button --episodes 1 --workers 1 --out"
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), str(tmp_path / "out")])
    assert stop.value.code == 0
