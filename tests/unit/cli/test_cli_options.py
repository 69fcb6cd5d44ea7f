"""`--config FILE`: options from YAML, and the shipped files fit the commands they are for."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from valueguide.cli import train
from valueguide.cli.main import main
from valueguide.cli.options import with_config
from valueguide.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
KINDS = {"critics": "critic", "policies": "policy"}


def _file(folder: Path, text: str) -> str:
    path = folder / "c.yaml"
    path.write_text(text)
    return str(path)


def test_typed_options_win_and_sub_commands_stay_in_front(tmp_path: Path) -> None:
    path = _file(tmp_path, "steps: 5\nhalf: true\nlayer_norm: false\ndataset: [a, b]\nout: x")
    arguments = with_config(path, ["critic", "--steps", "7"])
    assert arguments[0] == "critic"
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(arguments)
    assert (args.steps, args.half, args.layer_norm, args.dataset) == (7, True, False, [Path("a"), Path("b")])
    assert with_config("", ["critic"]) == ["critic"]


@pytest.mark.parametrize(
    ("what", "path"),
    [(what, p) for kind, what in KINDS.items() for p in sorted((CONFIGS / kind).glob("*.yaml"))],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_shipped_files_are_understood(what: str, path: Path) -> None:
    needed = ["--dataset=d", "--out=o", "--backbone=b"]
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(with_config(str(path), [what, *needed]))
    assert args.what == what and args.steps > 0


@pytest.mark.parametrize("text", ["- a", "steps: {a: 1}", "a: [", "steps:"])
def test_what_is_no_list_of_options_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="c.yaml"):
        with_config(_file(tmp_path, text), [])


def test_a_missing_file_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "critic", "--config", "nowhere.yaml"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --config nowhere.yaml: expected a readable YAML file")
