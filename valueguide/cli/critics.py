"""`valueguide critics list | check | shadow | promote | rollback`: which version of a critic serves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueguide.errors import CheckpointError, ConfigError, mismatch

if TYPE_CHECKING:
    from valueguide.online.checks import CheckLimits, CheckReport
    from valueguide.online.probe import Probe
    from valueguide.online.versions import CriticVersions

EXAMPLES = """examples:
  valueguide critics list runs/learner/versions

  # the first check stores the probe; later ones ask every version the same, and fresher chunks besides
  valueguide critics check runs/learner/versions 1 --probe-from runs/held_out --policy outputs/policy
  valueguide critics check runs/learner/versions 7 --held-out runs/day2/held_out

  valueguide critics shadow runs/learner/versions 7
  valueguide critics promote runs/learner/versions 7
  valueguide critics promote runs/learner/versions 7 --force --reason "new gripper, the probe is of the old"
  valueguide critics rollback runs/learner/versions --reason "it shakes"
"""
_GAMMA = 0.98


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = {
        "list": "versions, their roles and checks, and the last changes",
        "check": "compare a version with the serving one on the same chunks",
        "shadow": "score a version beside the serving one; it does not act",
        "promote": "let a version serve, if its check passes",
        "rollback": "let the version serve that served before",
    }
    whats = parser.add_subparsers(dest="what", required=True, metavar=" | ".join(names))
    made = {name: whats.add_parser(name, help=text) for name, text in names.items()}
    for one in made.values():
        one.add_argument("folder", type=Path, metavar="FOLDER", help="folder of critic versions")
    for name in ("check", "shadow", "promote"):
        made[name].add_argument(
            "number", type=int, nargs="?", metavar="N", help="its number (default: the newest)"
        )
    for name in ("check", "promote"):
        _add_check_arguments(made[name])
    made["shadow"].add_argument("--off", action="store_true", help="no version in shadow any more")
    made["promote"].add_argument(
        "--force", action="store_true", help="without a check, and also one that was rolled back"
    )
    for name in ("promote", "rollback"):
        made[name].add_argument("--reason", default="", help="kept in the history")


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    from valueguide.cli.device import add_device_argument

    data = "replay or dataset of rollouts that were not trained on"
    parser.add_argument("--probe-from", type=Path, help=f"{data}: store the probe, once")
    parser.add_argument("--held-out", type=Path, help=f"{data}, fresher than the probe")
    parser.add_argument("--policy", default="", help="its proposals are the candidates of new chunks")
    parser.add_argument("--states", type=int, default=256, help="most states drawn from each")
    parser.add_argument("--k", type=int, default=8, help="candidates of each state")
    parser.add_argument("--takeover", default="failure", choices=("failure", "bootstrap"), help="its rule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as rank_drop=0.1; may be repeated",
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does one of the five; returns the state after it. `check` reports failures, it does not fail on them.

    Raises CheckpointError, with what failed, for a promotion that a check refuses.
    """
    from valueguide.online.versions import CriticVersions

    if not args.folder.is_dir():
        raise CheckpointError(mismatch(str(args.folder), "folder", "critic versions", "none"))
    versions = CriticVersions(args.folder)
    return {"list": _list, "check": _check, "shadow": _shadow, "promote": _promote, "rollback": _rollback}[
        args.what
    ](args, versions)


def _list(args: argparse.Namespace, versions: CriticVersions) -> dict[str, Any]:
    rows = [
        {
            "number": version.number,
            "version": version.version,
            "step": version.step,
            "published": version.published,
            "role": version.role,
            "check": _verdict(versions, version.number),
            "problem": version.problem,
        }
        for version in versions.list()
    ]
    state = versions.state()
    print(f"{'number':>6}  {'version':12}  {'step':>8}  {'published':25}  {'role':9}  check")
    for row in rows:
        step = "" if row["step"] is None else row["step"]
        print(
            f"{row['number']:>6}  {row['version']:12}  {step:>8}  {row['published']:25}  {row['role']:9}  "
            f"{row['problem'] or row['check']}"
        )
    for change in state.history[-5:]:
        forced = " by force" if change.forced else ""
        reason = f": {change.reason}" if change.reason else ""
        print(
            f"{change.at}  {change.action}{forced} to {change.number} from {change.before or 'none'}{reason}"
        )
    return {"versions": rows, **state.to_json()}


def _check(args: argparse.Namespace, versions: CriticVersions) -> dict[str, Any]:
    number = _number(args, versions)
    report = _reviewed(args, versions, number, _probe(args, versions, number), limits_of(args))
    print(_table(number, report))
    return {"number": number, **report.to_json()}


def _shadow(args: argparse.Namespace, versions: CriticVersions) -> dict[str, Any]:
    if args.off and args.number is not None:
        raise ConfigError(mismatch("shadow", "version", "N or --off", f"{args.number} and --off"))
    state = versions.set_shadow(None if args.off else _number(args, versions))
    print(f"shadow: {state.shadow or 'none'}, serving: {state.serving or 'none'}")
    return state.to_json()


def _promote(args: argparse.Namespace, versions: CriticVersions) -> dict[str, Any]:
    from valueguide.online.checks import promote_checked

    number = _number(args, versions)
    if args.force:
        if not args.reason:
            raise ConfigError(mismatch("promote --force", "--reason", "one for the history", "none"))
        state = versions.promote(number, args.reason, force=True)
    else:
        report = _valid_report(args, versions, number)
        try:
            state = promote_checked(versions, number, report, args.reason)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. --force with --reason promotes it all the same") from error
    print(f"serving: {state.serving}, before: {state.previous or 'none'}")
    return state.to_json()


def _rollback(args: argparse.Namespace, versions: CriticVersions) -> dict[str, Any]:
    state = versions.rollback(args.reason)
    print(f"serving: {state.serving}, withdrawn: {state.history[-1].before}")
    return state.to_json()


def _valid_report(args: argparse.Namespace, versions: CriticVersions, number: int) -> CheckReport:
    """What `check` found, if it still holds for these limits and this probe; otherwise checked now."""
    from valueguide.online.checks import CheckReport, is_current

    probe, limits, kept = _probe(args, versions, number), limits_of(args), versions.report(number)
    if kept is not None and args.held_out is None:
        report = CheckReport.from_json(kept)
        if is_current(report, versions, number) and (report.probe, report.limits) == (probe.digest, limits):
            return report
    report = _reviewed(args, versions, number, probe, limits)
    print(_table(number, report))
    return report


def _reviewed(
    args: argparse.Namespace, versions: CriticVersions, number: int, probe: Probe, limits: CheckLimits
) -> CheckReport:
    from functools import partial

    from valueguide.cli.device import usable_device
    from valueguide.critics.scorer import LearnedCritic
    from valueguide.online.checks import review

    load = partial(LearnedCritic.load, device=usable_device(args.device))
    held_out = None if args.held_out is None else _made(args, versions, number, args.held_out)
    return review(versions, number, load, probe, held_out, limits)


def _probe(args: argparse.Namespace, versions: CriticVersions, number: int) -> Probe:
    """The stored one; --probe-from makes it where there is none."""
    from valueguide.online.probe import PROBE, Probe

    path = versions.root / PROBE
    if args.probe_from is None:
        if not path.exists():
            raise CheckpointError(mismatch(str(path), "probe", "a stored one or --probe-from", "neither"))
        return Probe.load(path)
    if path.exists():
        hint = "Versions are comparable only on the same; remove the file to begin anew"
        raise ConfigError(mismatch("--probe-from", "probe", "none yet", path, hint))
    probe = _made(args, versions, number, args.probe_from)
    probe.save(path)
    return probe


def _made(args: argparse.Namespace, versions: CriticVersions, number: int, source: Path) -> Probe:
    """Drawn from the data with the critic's own discount and executed length."""
    from valueguide.cli.device import usable_device
    from valueguide.critics.checkpoint import LoadedCritic
    from valueguide.online.probe import make_probe, segments_in
    from valueguide.online.replay_loader import Labelling

    proposer = None
    if args.policy:
        from valueguide.policies.load import load_policy

        proposer = load_policy(args.policy, usable_device(args.device))
    critic = LoadedCritic(versions.folder(number))
    labelling = Labelling(
        critic.spec.executed_length, critic.manifest.get("gamma", _GAMMA), takeover=args.takeover
    )
    return make_probe(
        segments_in(source),
        labelling,
        states=args.states,
        k=args.k,
        seed=args.seed,
        proposer=proposer,
        facts={"source": source.name},
    )


def limits_of(args: argparse.Namespace) -> CheckLimits:
    """Of the checks: the defaults, and what --limit says. Raises ConfigError."""
    from dataclasses import asdict

    from valueguide.online.checks import CheckLimits

    known: dict[str, Any] = asdict(CheckLimits())
    given: dict[str, Any] = {}
    for text in args.limit:
        name, _, value = text.partition("=")
        if name not in known:
            raise ConfigError(mismatch("--limit", "name", ", ".join(known), repr(name)))
        try:
            given[name] = value if isinstance(known[name], str) else float(value)
        except ValueError as error:
            raise ConfigError(mismatch(f"--limit {name}", "value", "a number", repr(value))) from error
    return CheckLimits(**given)


def _number(args: argparse.Namespace, versions: CriticVersions) -> int:
    numbers = versions.numbers()
    if not numbers:
        raise CheckpointError(mismatch(str(args.folder), "versions", "1 or more", "none"))
    number: int = numbers[-1] if args.number is None else args.number
    versions.verify(number)
    return number


def _verdict(versions: CriticVersions, number: int) -> str:
    """Of the kept report: "passed", "failed" with what, what is wrong with it, or "-"."""
    from valueguide.online.checks import CheckReport

    try:
        kept = versions.report(number)
        if kept is None:
            return "-"
        report = CheckReport.from_json(kept)
    except CheckpointError as error:
        return str(error)
    failed = [check.name for check in report.checks if not check.passed]
    return f"failed: {', '.join(failed)}" if failed else "passed"


def _table(number: int, report: CheckReport) -> str:
    """One line a check, then what to think of it."""
    against = f"against {report.against}" if report.against else "with no version serving"
    lines = [f"version {number} ({report.version}) {against}"]
    lines += [f"  {'ok' if check.passed else 'FAILED':6}  {check.line}" for check in report.checks]
    return "\n".join([*lines, "passed" if report.passed else f"{len(report.failures)} failed"])
