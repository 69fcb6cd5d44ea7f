"""A policy server that somebody else runs as a `Policy`: K candidates, deadlines, and nothing stale.

policy = connect_policy("openpi://127.0.0.1:8000?config=wxai-state-openpi", robot)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from valueguide.errors import ConfigError, DataError, ValueguideError, mismatch
from valueguide.transport.remote_groot import GrootLink
from valueguide.transport.remote_link import LateReply, LinkClosed, PolicyServerLink
from valueguide.transport.remote_mapping import (
    RobotFacts,
    ServerConfig,
    check_robot,
    load_server,
    read_actions,
    request_parts,
)
from valueguide.transport.remote_openpi import OpenPiLink
from valueguide.types import Candidates, Float32, Observation

log = logging.getLogger("valueguide.transport")
SCHEMES = ("openpi", "openpi+tls", "groot")
_LOCAL = ("127.0.0.1", "localhost", "::1")
_BLANK = (224, 224)


def is_remote(policy: str) -> bool:
    """Whether the name of a policy is the address of a server, such as `groot://host:5555?config=FILE`."""
    return policy.partition("://")[0] in SCHEMES and "://" in policy


def connect_policy(address: str, robot: RobotFacts) -> RemotePolicy:
    """A policy served at `SCHEME://HOST:PORT?config=NAME_OR_FILE`, connected to and checked.

    Raises ConfigError when address, file and robot do not fit together, LinkError when nothing that speaks
    the protocol answers.
    """
    config, link = _parse(address)
    policy = RemotePolicy(address, link, config, robot)
    policy.connect()
    return policy


class RemotePolicy:
    """Implements `interfaces.Policy`. Candidate 0 is the server's first answer, so what it alone would do.

    horizon, action_dim: of one candidate. cameras: camera -> (height, width) that is asked for.
    version: of address, mapping and the server's own description; the weights behind it cannot be seen.
    late: candidates since the start that did not come in time and were replaced by candidate 0.
    One thread at a time.
    """

    history = 1

    def __init__(self, address: str, link: PolicyServerLink, config: ServerConfig, robot: RobotFacts) -> None:
        self.where = urlsplit(address)._replace(query="").geturl()
        check_robot(config, robot, self.where)
        self._config, self._link = config, link
        self.horizon, self.action_dim = config.horizon, len(config.actions)
        used = {picture.camera for picture in config.pictures.values()}
        self.cameras = {name: size for name, size in robot.cameras.items() if name in used}
        self.needs_environment_state = bool(config.environment_state)
        self.version, self.late = "", 0
        self._observation: Observation | None = None
        self._answered, self._begins = False, True

    def connect(self) -> None:
        """Connect now, so that a wrong address is an error here. Raises LinkError or DataError."""
        try:
            self._link.open(time.monotonic() + self._config.first_timeout_s)
        except ValueguideError:
            self._link.close()
            raise
        facts = [self.where, dataclasses.asdict(self._config), repr(self._link.metadata())]
        self.version = f"remote-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"

    def reset(self) -> None:
        """Start of an episode; the server is told with the next question."""
        self._observation, self._begins = None, True

    def observe(self, observation: Observation) -> None:
        """The latest observation is what `sample` asks about. Servers' own histories are not served."""
        self._observation = observation

    def sample(self, k: int, seed: int) -> Candidates:
        """K chunks, float32 (K, H, A), physical, for the latest observation, within `timeout_s`.

        seed: passed on to servers with a `seed_key`, where candidate i depends on the seed and i; others draw
        as they like. When time is over, candidates that have not come are copies of candidate 0, counted in
        `late`; without candidate 0 it is a LinkError. DataError: the observation or a reply is wrong.
        """
        if k < 1 or seed < 0:
            raise ConfigError(mismatch("sample", "K, seed", "1 or more, 0 or more", (k, seed)))
        if self._observation is None:
            raise DataError(
                "sample: expected an observation since the last reset, found none. Call observe first"
            )
        parts = request_parts(self._config, self._observation)
        limit = self._config.timeout_s if self._answered else self._config.first_timeout_s
        deadline = time.monotonic() + limit
        rows: list[Float32] = []
        try:
            self._prepare(deadline)
            while len(rows) < k:
                rows.extend(self._ask(parts, k, len(rows), seed, deadline))
        except LateReply as error:
            self._link.close()
            if not rows:
                raise
            log.warning("%s; %d of %d candidates came in time", error, len(rows), k)
            self.late += k - len(rows)
            rows += [rows[0]] * (k - len(rows))
        except ValueguideError:
            self._link.close()
            raise
        self._answered = True
        return Candidates(np.stack(rows))

    def warm_up(self, k: int) -> Candidates:
        """Sample K chunks for a blank observation, so that the server compiles before an arm waits."""
        blank = Observation(
            images={
                name: np.zeros((height or _BLANK[0], width or _BLANK[1], 3), np.uint8)
                for name, (height, width) in self.cameras.items()
            },
            state=np.zeros(len(self._config.state_names), np.float32),
            task="",
            environment_state=np.zeros(self._config.environment_state_size, np.float32),
        )
        self.reset()
        self.observe(blank)
        candidates = self.sample(k, 0)
        self.reset()
        return candidates

    def close(self) -> None:
        """Disconnect; the next `sample` connects again."""
        self._link.close()

    def _prepare(self, deadline: float) -> None:
        """Connected, and told of a new episode. A connection that has died since is replaced once."""
        new = self._link.open(deadline)
        if not self._begins:
            return
        try:
            self._link.reset(deadline)
        except LinkClosed:
            if new:
                raise
            self._reconnect(deadline)
            self._link.reset(deadline)
        self._begins = False

    def _ask(self, parts: dict, k: int, number: int, seed: int, deadline: float) -> list[Float32]:
        """Candidate `number`, or all K where the server takes batches."""
        rows = k if self._link.batches else 1
        drawn = _seed_of(seed, number) if self._config.seed_key else None
        try:
            reply = self._link.ask(parts, rows, drawn, deadline)
        except LinkClosed:
            if number:
                raise
            self._reconnect(deadline)  # idle connections die unseen
            reply = self._link.ask(parts, rows, drawn, deadline)
        return list(read_actions(self._config, reply, rows if self._link.batches else None, self.where))

    def _reconnect(self, deadline: float) -> None:
        self._link.close()
        self._link.open(deadline)


def _seed_of(seed: int, number: int) -> int:
    """Candidate 0 has the decision's seed itself, as the policy alone would."""
    return seed if number == 0 else int(np.random.default_rng([seed, number]).integers(2**31))


def _parse(address: str) -> tuple[ServerConfig, PolicyServerLink]:
    wanted = "openpi://HOST:PORT?config=NAME_OR_FILE (or openpi+tls, groot)"
    try:
        parts = urlsplit(address)
        port, query = parts.port, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise ConfigError(mismatch("policy", "address", wanted, f"{address!r} ({error})")) from error
    if parts.scheme not in SCHEMES or not parts.hostname or not port or parts.path.strip("/"):
        raise ConfigError(mismatch("policy", "address", wanted, repr(address)))
    if parts.username or parts.password or set(query) != {"config"}:
        raise ConfigError(mismatch("policy", "address", wanted, "a user, or other settings than config"))
    config = load_server(query["config"])
    ours, theirs = parts.scheme.partition("+")[0], config.dialect.partition("_")[0]
    if ours != theirs:
        raise ConfigError(mismatch(f"policy {query['config']}", "dialect", f"one of {ours}", config.dialect))
    key = os.environ.get(config.key_variable, "") if config.key_variable else ""
    if config.key_variable and not key:
        raise ConfigError(
            mismatch(
                f"policy {query['config']}", f"variable {config.key_variable}", "the server's key", "none"
            )
        )
    tls = parts.scheme == "openpi+tls"
    if parts.hostname not in _LOCAL and not tls:
        log.warning("%s: pictures%s travel unencrypted", parts.netloc, " and the key" if key else "")
    if ours == "openpi":
        return config, OpenPiLink(parts.hostname, port, config, key, tls)
    return config, GrootLink(parts.hostname, port, config, key)
