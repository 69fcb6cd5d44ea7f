"""Where keys are needed, and that wrong ones are named."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from valueguide.errors import ConfigError
from valueguide.transport.keys import (
    ClientKeys,
    allowed_clients,
    check_endpoint,
    is_loopback,
    make_keys,
    read_key,
)


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:7447", True),
        ("tcp://127.0.0.1:*", True),
        ("tcp://127.1.2.3:1", True),
        ("tcp://localhost:7447", True),
        ("tcp://[::1]:7447", True),
        ("ipc:///tmp/x", True),
        ("tcp://0.0.0.0:7447", False),
        ("tcp://*:7447", False),
        ("tcp://[::]:7447", False),
        ("tcp://192.168.1.5:7447", False),
        ("tcp://eth0:7447", False),
        ("tcp://localhost.example.org:7447", False),
    ],
)
def test_whether_only_this_machine_can_reach_it(endpoint: str, local: bool) -> None:
    assert is_loopback(endpoint) is local
    if local:
        check_endpoint(endpoint, None)
    else:
        with pytest.raises(ConfigError, match="CURVE keys, as others can reach it, found none. Make keys"):
            check_endpoint(endpoint, None)
        check_endpoint(endpoint, ClientKeys(Path("a"), Path("b")))


@pytest.mark.parametrize("text", ["", "127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://a:1"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        check_endpoint(text, None)


def test_a_pair_is_made_once_and_its_secret_is_for_its_owner(tmp_path: Path) -> None:
    public, secret = make_keys(tmp_path / "keys", "arm1")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert read_key(secret, secret=True)[0] == read_key(public)[0]
    with pytest.raises(ConfigError, match="exists"):
        make_keys(tmp_path / "keys", "arm1")
    with pytest.raises(ConfigError, match="letters"):
        make_keys(tmp_path, "../arm1")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(secret, secret=True)
    with pytest.raises(ConfigError, match="a secret one"):
        read_key(public, secret=True)


def test_the_list_of_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder with the clients' public keys"):
        allowed_clients(tmp_path / "clients")
    (tmp_path / "clients").mkdir()
    with pytest.raises(ConfigError, match="at least one client"):
        allowed_clients(tmp_path / "clients")
    public, _ = make_keys(tmp_path / "clients", "arm1")
    assert allowed_clients(tmp_path / "clients") == {read_key(public)[0].decode()}
    (tmp_path / "clients" / "bad.key").write_text("curve\n")
    with pytest.raises(ConfigError, match="bad.key: expected a key file"):
        allowed_clients(tmp_path / "clients")
