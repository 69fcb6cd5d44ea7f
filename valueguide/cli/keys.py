"""`valueguide keys`: CURVE keys for a server that other machines can reach, and for its clients."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  # on the workstation: the server's pair, and the folder of clients that may connect
  valueguide keys make server --out keys
  mkdir -p keys/clients

  # on the robot: its own pair; carry arm1.key to the workstation's keys/clients/, server.key to the robot
  valueguide keys make arm1 --out keys

  valueguide serve --bind tcp://0.0.0.0:7447 --keys keys/server.key_secret --clients keys/clients
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["make"], help="make: a new pair, never over an old one")
    parser.add_argument(
        "name", help="of the pair: NAME.key is public, NAME.key_secret stays where it is made"
    )
    parser.add_argument("--out", type=Path, default=Path("keys"), help="folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes both files; returns their paths."""
    from valueguide.transport.keys import make_keys

    public, secret = make_keys(args.out, args.name)
    print(f"public key {public}: give it to the other side\nsecret key {secret}: keep it here")
    return {"public": str(public), "secret": str(secret)}
