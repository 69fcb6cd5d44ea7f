"""`valueguide serve` and `keys`: what is refused before any model is loaded, and keys that fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valueguide.cli.main import main
from valueguide.transport.keys import ServerKeys, allowed_clients, check_endpoint, read_key


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bind", "tcp://0.0.0.0:7447"], "CURVE keys, as others can reach it, found none"),
        (["--bind", "7447"], "tcp://HOST:PORT or ipc://PATH"),
        (["--keys", "a.key_secret"], "both --keys and --clients, or neither, found only --keys"),
        (["--max-batch", "0"], "--max-batch: value: expected 1 or more, found 0"),
        (["--policy", "/no/such/policy", "--status-port", "0"], "/no/such/policy"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--policy" in arguments:
        pytest.importorskip("torch")
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and says in error


def test_keys_are_made_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, folder in (("server", tmp_path), ("arm1", tmp_path / "clients")):
        with pytest.raises(SystemExit) as ended:
            main(["keys", "make", name, "--out", str(folder), "--json", str(tmp_path / "made.json")])
        assert ended.value.code == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert allowed_clients(tmp_path / "clients") == {read_key(Path(made["secret"]))[0].decode()}
    check_endpoint("tcp://0.0.0.0:1", ServerKeys(tmp_path / "server.key_secret", tmp_path / "clients"))
    with pytest.raises(SystemExit) as ended:
        main(["keys", "make", "server", "--out", str(tmp_path)])
    assert ended.value.code == 2 and "exists" in capsys.readouterr().err
