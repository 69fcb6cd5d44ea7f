"""Endpoints and CURVE keys: loopback needs none, any other address needs them on both sides.

Keys are ZeroMQ certificates: NAME.key is public, NAME.key_secret is not. A server is given its own secret and
a folder with the public keys of the clients that may connect; a client its own secret and the server's
public key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth

from valueguide.errors import ConfigError, mismatch

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TCP = re.compile(r"tcp://(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/]+)):(?P<port>\d{1,5}|\*)")
_HINT = "Make keys with `valueguide keys make`, see docs/serve.md"


@dataclass(frozen=True)
class ServerKeys:
    """secret: file of the server's own keys. clients: folder of the public keys that may connect."""

    secret: Path
    clients: Path


@dataclass(frozen=True)
class ClientKeys:
    """secret: file of the client's own keys. server: file of the server's public key."""

    secret: Path
    server: Path


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A new pair: (public file, secret file), the secret readable by its owner only.

    Raises ConfigError when the name is no plain word or the files exist: a key is never overwritten.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(mismatch("keys", "name", "letters, digits, '.', '_' and '-'", repr(name)))
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists():
            raise ConfigError(f"{path}: exists. Take another name, or move it away first")
    folder.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(before)
    public.chmod(0o644)
    return public, secret


def read_key(path: Path, secret: bool = False) -> tuple[bytes, bytes]:
    """(public, secret) of a certificate file, 40 characters each; the second is empty of a public file.

    Raises ConfigError naming the file when it is missing, no certificate, or a secret that others may read.
    """
    try:
        public, hidden = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a key file: {error}. {_HINT}") from None
    if secret and hidden is None:
        raise ConfigError(mismatch(str(path), "key", "a secret one (NAME.key_secret)", "a public one"))
    if secret and path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path}: expected a secret key that only its owner can read. Run: chmod 600 {path}"
        )
    for key in (public, hidden or public):
        if len(key) != 40:
            raise ConfigError(mismatch(str(path), "key", "40 characters", len(key)))
    return public, hidden or b""


def allowed_clients(folder: Path) -> frozenset[str]:
    """The public keys in a folder. Raises ConfigError when there is none, or a file is no key."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder with the clients' public keys. {_HINT}")
    keys = frozenset(read_key(path)[0].decode() for path in sorted(folder.glob("*.key")))
    if not keys:
        raise ConfigError(f"{folder}: expected the public key (NAME.key) of at least one client, found none")
    return keys


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach it. Raises ConfigError for what is no tcp:// or ipc:// endpoint."""
    if endpoint.startswith("ipc://"):
        return True
    found = _TCP.fullmatch(endpoint)
    if found is None or (found["port"] != "*" and int(found["port"]) > 65535):
        raise ConfigError(mismatch("server", "address", "tcp://HOST:PORT or ipc://PATH", repr(endpoint)))
    host = found["six"] or found["host"]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name or an interface


def check_endpoint(endpoint: str, keys: ServerKeys | ClientKeys | None) -> None:
    """Raises ConfigError when the endpoint can be reached from elsewhere and there are no keys."""
    if not is_loopback(endpoint) and keys is None:
        raise ConfigError(mismatch(endpoint, "keys", "CURVE keys, as others can reach it", "none", _HINT))


def use_client_keys(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    """Encrypt and authenticate a client's socket, before it connects."""
    socket.curve_publickey, socket.curve_secretkey = read_key(keys.secret, secret=True)
    socket.curve_serverkey = read_key(keys.server)[0]


def use_server_keys(socket: zmq.Socket[bytes], keys: ServerKeys) -> None:
    """As above for a server, before it binds; who may connect is the authenticator's business."""
    socket.curve_secretkey = read_key(keys.secret, secret=True)[1]
    socket.curve_server = True
