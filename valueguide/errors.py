"""The errors a user can cause. Each message says where, what was expected and what was found.

The command line turns any `ValueguideError` into one line on stderr and exit status 2;
everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class ValueguideError(Exception):
    """Base of all errors caused by input, configuration or the machine."""


class ConfigError(ValueguideError):
    """A setting, argument or configuration file is wrong."""


class DataError(ValueguideError):
    """A dataset, episode or observation is wrong."""


class CheckpointError(ValueguideError):
    """A checkpoint is missing, truncated, or made for another robot, policy or action space."""


class LinkError(ValueguideError):
    """A server did not answer in time, went away, or refused what it was asked."""


class EnvironmentSetupError(ValueguideError):
    """A library, driver or device that the command needs is not usable on this machine."""


def mismatch(where: str, what: str, expected: object, found: object, hint: str = "") -> str:
    """One line in the house style: where, what, expected, found, and (optionally) what to do next."""
    line = f"{where}: {what}: expected {expected}, found {found}"
    return f"{line}. {hint}" if hint else line
