"""`valueguide`: finds the command, parses its arguments, prints its result or one line of error."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from valueguide import __version__
from valueguide.cli.options import with_config
from valueguide.errors import ConfigError, ValueguideError, mismatch

COMMANDS = {
    "demo": "a frozen policy alone, then guided by a critic: table, report and videos",
    "collect": "record demonstrations or rollouts as a LeRobotDataset v3",
    "train": "train a backbone, a policy or a critic",
    "learner": "a critic that learns from episodes while they are recorded, in a process of its own",
    "critics": "versions of a critic: check, shadow, promote, roll back",
    "eval": "compare arms on the same initial states",
    "compare": "evaluations that ran apart, side by side on the same episodes",
    "replay": "logged choices made again by another critic, temperature or aggregation",
    "convert": "a dataset with interventions marked as one of LeRobot's programs marks them",
    "progress": "how far along a task is, by a vision-language model: score, detect success, filter",
    "serve": "policy and critic behind one socket, for robots without torch",
    "keys": "make keys for a server that other machines can reach",
    "bag": "MCAP bags to datasets and back, and what a bag holds and lacks",
    "ros": "build the ROS 2 workspace, launch the graph, run one node",
    "bench": "measure speed and memory against a baseline in the same run",
    "top": "a running ROS 2 graph in a terminal: rates, latencies, who commands, safety",
    "doctor": "what this machine can and cannot do, and how to fix it",
}
_BAD_INPUT, _INTERRUPTED = 2, 130


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit status 0 on success, 2 on bad input (one line on stderr), 130 on Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"valueguide {__version__}")
        return
    name = arguments[0]
    if name not in COMMANDS:
        _fail(f"expected a command ({', '.join(COMMANDS)}), found {name!r}")
    sys.exit(_run(name, arguments[1:]))


def _run(name: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"valueguide.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"valueguide {name}",
        description=COMMANDS[name],
        epilog=module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    everywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for target in (parser, everywhere):  # in `parser` for its help; taken first, so it may stand anywhere
        target.add_argument(
            "--json", metavar="FILE", default="", help="write the result as JSON; - for stdout"
        )
        target.add_argument(
            "--config", metavar="FILE", default="", help="YAML with options; those typed here win over it"
        )
    module.add_arguments(parser)
    shared, rest = everywhere.parse_known_args(arguments)
    try:
        args = parser.parse_args(with_config(shared.config, rest))
        # With the JSON on stdout, everything that is meant for people goes to stderr.
        with contextlib.redirect_stdout(sys.stderr) if shared.json == "-" else contextlib.nullcontext():
            result = module.run(args)
        _write_json(shared.json, result)
    except ValueguideError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; finished work is kept", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`): not an error, but Python would print one at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _write_json(target: str, result: dict[str, Any] | None) -> None:
    if not target or result is None:
        return
    text = json.dumps(result, indent=1)
    if target == "-":
        print(text)
    else:
        try:
            Path(target).write_text(text + "\n")
        except OSError as error:
            raise ConfigError(mismatch("--json", "file", "one that can be written", error)) from None


def _overview() -> str:
    rows = "\n".join(f"  {name:9}{text}" for name, text in COMMANDS.items())
    return (
        "usage: valueguide COMMAND [options]\n\n"
        "Value-guided deployment of vision-language-action policies.\n\n"
        f"commands:\n{rows}\n\n"
        "start here:  valueguide demo\n"
        "details:     valueguide COMMAND --help"
    )


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(_BAD_INPUT)


if __name__ == "__main__":
    main()
