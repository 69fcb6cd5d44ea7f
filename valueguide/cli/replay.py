"""`valueguide replay`: a critic judged on yesterday's logs, before it touches the arm."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from valueguide.cli.bench_ranking import named
from valueguide.cli.common import progress_bar
from valueguide.cli.device import add_device_argument, usable_device
from valueguide.errors import ConfigError, DataError, mismatch

EXAMPLES = """examples:
  # would the new critic have chosen otherwise, and does it know better than the old one how episodes end?
  valueguide replay --dataset runs/day1/dataset --critic outputs/new_critic

  # two critics, drawing instead of taking the best
  valueguide replay --dataset runs/day1/bag --critic outputs/a --critic outputs/b --beta 0.5 --out out/replay

  # only another aggregation of the logged scores
  valueguide replay --dataset runs/day1/dataset --aggregate mean
"""
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", type=Path, required=True, help="dataset folder that valueguide recorded, or an MCAP bag"
    )
    parser.add_argument(
        "--critic",
        action="append",
        default=[],
        help="critic folder, may be repeated; without: the logged scores",
    )
    parser.add_argument("--beta", type=float, default=0.0, help="softmax temperature; 0 takes the best")
    parser.add_argument("--aggregate", default="min", help="over ensemble members: min, mean or lcb")
    parser.add_argument(
        "--spread-limit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go back to candidate 0 where a critic's members disagree beyond its limit, as on the robot",
    )
    parser.add_argument("--gamma", type=float, default=0.98, help="discount of the realised returns")
    parser.add_argument("--seed", type=int, default=0, help="of softmax draws that the log has no seed for")
    parser.add_argument("--robot", default="", help="for a bag that does not describe its robot")
    parser.add_argument("--namespace", default=None, help="of the recorded graph, where the bag does not say")
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, help="folder for report.html and counterfactual.json")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score and choose again, print a table, write the report; returns what counterfactual.json holds."""
    from valueguide.data.reader import EpisodeDataset
    from valueguide.evaluation.counterfactual_report import write_counterfactual_report
    from valueguide.evaluation.counterfactual_results import LOGGED
    from valueguide.steering.decide import AGGREGATES, check_beta

    check_beta(args.beta)
    if args.aggregate not in AGGREGATES:
        raise ConfigError(mismatch("--aggregate", "value", ", ".join(AGGREGATES), repr(args.aggregate)))
    if not 0.0 <= args.gamma < 1.0:
        raise ConfigError(mismatch("--gamma", "value", "0 to below 1", args.gamma))
    if args.seed < 0:
        raise ConfigError(mismatch("--seed", "value", "0 or more", args.seed))
    folders = named(args.critic) if args.critic else {}
    device = usable_device(args.device) if folders else "cpu"
    with _as_dataset(args) as folder:
        results = _replay(args, EpisodeDataset.open(folder), folders, device)
    out = args.out or Path("outputs") / f"replay-{args.dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        whole, part = out / "counterfactual.json", out / "counterfactual.json.part"
        part.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(part, whole)
        write_counterfactual_report(out / "report.html", results, LOGGED)
    except OSError as error:
        raise DataError(f"{out}: cannot write the report: {error}") from error
    print(table(results))
    print(f"\nreport: {out / 'report.html'}")
    return results


def _replay(args: argparse.Namespace, dataset: Any, folders: dict[str, str], device: str) -> dict[str, Any]:
    from valueguide.evaluation.counterfactual import Rule, choose_again, load_critic, read_log, rescore
    from valueguide.evaluation.counterfactual_results import LOGGED, build_results

    start = time.perf_counter()
    log = read_log(dataset, args.gamma)
    critics = {name: load_critic(path, dataset, log, device) for name, path in folders.items()}
    rule = Rule(args.beta, args.aggregate, args.seed, args.spread_limit)
    cameras = list(dict.fromkeys(camera for critic in critics.values() for camera in critic.spec.cameras))
    made = {}
    if critics:
        with progress_bar(len(log.decisions), "decisions") as bar:
            made = rescore(dataset, log, critics, rule, cameras, bar.update)
    if any(logged.decision.scores is not None for logged in log.decisions):
        made[LOGGED] = choose_again(log, rule)
    if not made:
        raise ConfigError(
            f"{args.dataset}: no scores are logged; expected a --critic that makes some, found none"
        )
    settings = {
        "dataset": str(args.dataset),
        "dataset_id": dataset.dataset_id,
        "critics": folders,
        "beta": args.beta,
        "aggregate": args.aggregate,
        "spread_limit": args.spread_limit,
        "gamma": args.gamma,
        "seed": args.seed,
        "device": device,
        "seconds": round(time.perf_counter() - start, 3),
        "command": " ".join(["valueguide", *sys.argv[1:]]),
    }
    versions = {name: critic.version for name, critic in critics.items()}
    return build_results(settings, log, made, versions, args.seed)


@contextlib.contextmanager
def _as_dataset(args: argparse.Namespace) -> Iterator[Path]:
    """The dataset's folder; a bag is imported into one that lasts as long as the command."""
    path: Path = args.dataset
    if path.suffix != ".mcap" and ((path / "meta").is_dir() or not any(path.glob("*.mcap"))):
        yield path
        return
    from valueguide.config.robot import load_robot
    from valueguide.ros.bag_import import import_bag

    with tempfile.TemporaryDirectory(prefix="valueguide-replay-") as folder:
        out = Path(folder) / "dataset"
        robot = load_robot(args.robot) if args.robot else None
        found = import_bag(path, out, robot=robot, namespace=args.namespace)
        for line in found["dropped"]:
            print(line, file=sys.stderr)
        if not found["episodes"]:
            raise DataError(mismatch(str(path), "finished episodes", "one or more", "none"))
        yield out


def table(results: dict[str, Any]) -> str:
    """What changed, how values and outcomes relate, and the episodes that changed most."""
    log, critics = results["log"], results["critics"]
    outcomes = ", ".join(f"{count} {kind}" for kind, count in log["outcomes"].items() if count)
    lines = [f"{log['decisions']} decisions of {log['episodes']} episodes ({outcomes})"]
    lines += [f"left out: {count} replans with {cause}" for cause, count in log["skipped"].items()]
    for name, entry in critics.items():
        lines += ["", *_critic_lines(name, entry, results["versus_logged"].get(name))]
    for names, found in results["between"].items():
        same, rank = _rate(found["same"]), _figure(found["rank"])
        lines.append(f"{names.replace('_vs_', ' and ')}: same choice {same}; rank correlation {rank}")
    first = next(iter(critics))
    lines += ["", f"changed most by {first}:", *_episode_lines(critics[first]["episodes"])]
    return "\n".join([*lines, "", results["caveat"]])


def _critic_lines(name: str, entry: dict[str, Any], versus: dict[str, Any] | None) -> list[str]:
    changed, outcome = entry["changed"], entry["outcome"]
    rows = [("changed, of all decisions", _rate(changed["all"]))]
    rows += [(f"  {task}", _rate(cell)) for task, cell in changed["tasks"].items()]
    rows += [(f"  episodes: {kind}", _rate(cell)) for kind, cell in changed["outcomes"].items() if cell["n"]]
    path = changed["on_path"]
    rows += [
        ("against the logged preference", _rate(entry["against_logged_critic"])),
        ("decisions up to the first change", f"{path['decisions']} of {path['n']}"),
        ("regret of what ran", _figure(entry["regret"], 3)),
        ("rank correlation with the log", _figure(entry["agreement"])),
        ("value with realised return", _figure(outcome["spearman"])),
        ("  within tasks", _figure(outcome["spearman_within_tasks"])),
        ("AUC of first value for success", _figure(outcome["auc"])),
        ("  within tasks", _figure(outcome["auc_within_tasks"])),
    ]
    rows += [(f"mean value, {kind}", _figure(found)) for kind, found in outcome["mean_value"].items()]
    if versus:
        rows += [(f"{kind}, less the logged", _figure(found, sign="+")) for kind, found in versus.items()]
    if entry["same_version"]:
        rows.append(("largest difference to the log", f"{entry['same_version']['largest_difference']:.1e}"))
    return [f"{name} {entry['version']}".rstrip(), *(f"  {head:34}{text}" for head, text in rows)]


def _episode_lines(episodes: list[dict[str, Any]]) -> list[str]:
    width = max((len(row["task"]) for row in episodes), default=0)
    lines = [f"  {'episode':>7}  {'task':{width}}  {'outcome':8}{'decisions':>10}{'changed':>9}{'regret':>9}"]
    lines += [
        f"  {row['episode']:>7}  {row['task']:{width}}  {row['outcome']:8}{row['decisions']:>10}"
        f"{row['changed']:>9}{row['regret']:>9.3f}"
        for row in episodes[:_SHOWN]
    ]
    return lines


def _rate(cell: dict[str, Any]) -> str:
    if not cell["n"]:
        return "no decisions"
    low, high = cell["wilson95"]
    return (
        f"{100 * cell['rate']:.1f} % ({100 * low:.0f} to {100 * high:.0f}), {cell['successes']}/{cell['n']}"
    )


def _figure(found: dict[str, Any], digits: int = 2, sign: str = "") -> str:
    from valueguide.evaluation.counterfactual_report import shown

    return shown(found, digits, sign)
