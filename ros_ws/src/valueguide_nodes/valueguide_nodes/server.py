"""Policy and critic on a workstation (`valueguide serve`) instead of in this process: the parameter `server`.

Needs no torch. See docs/serve.md.
"""

from __future__ import annotations

from pathlib import Path

from valueguide.errors import ConfigError, LinkError, mismatch
from valueguide.steering.steer import SteeringConfig
from valueguide.transport.keys import ClientKeys
from valueguide.transport.link import ServerLink
from valueguide.transport.pending import LinkSettings
from valueguide.transport.steerer import RemoteSteerer
from valueguide_nodes.base import Param, VgNode

PARAMETERS = (
    Param("server", "", "tcp://HOST:PORT of `valueguide serve`; empty: the models run in this node"),
    Param("server_timeout_s", 1.0, "until when the server must have answered", 0.01, 60.0),
    Param("server_pictures", "raw", "how pictures travel: raw, png or jpeg"),
    Param("server_key", "", "the server's public key (server.key); needed beyond this machine"),
    Param("client_key", "", "this robot's secret key (NAME.key_secret)"),
)
_CONNECT_S = 10.0


def remote_steerer(node: VgNode, config: SteeringConfig, guided: bool = True) -> RemoteSteerer:
    """Connected to the node's server. Raises LinkError when none answers, ConfigError for wrong keys."""
    if bool(node.param("server_key")) != bool(node.param("client_key")):
        raise ConfigError(mismatch(node.NAME, "keys", "server_key and client_key, or neither", "one of them"))
    keys = None
    if node.param("client_key"):
        keys = ClientKeys(Path(node.param("client_key")), Path(node.param("server_key")))
    link = ServerLink(
        LinkSettings(
            node.param("server"),
            keys,
            name=node.get_fully_qualified_name(),
            pictures=node.param("server_pictures"),
            timeout_s=node.param("server_timeout_s"),
        )
    )
    try:
        return RemoteSteerer(link, config, guided=guided, connect_s=_CONNECT_S)
    except LinkError:
        link.close()
        raise


def needs(steerer: RemoteSteerer) -> tuple[set[str], bool]:
    """(cameras, whether the simulator's state) of the critic that serves now."""
    critic = steerer.critic
    return (set(critic.cameras), critic.environment_state_dim > 0) if critic else (set(), False)
