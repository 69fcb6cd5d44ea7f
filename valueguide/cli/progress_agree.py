"""`valueguide progress agree`: progress, the simulator's true progress and a critic's value, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valueguide.cli.device import add_device_argument
from valueguide.errors import DataError, mismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from valueguide.data.reader import EpisodeDataset
    from valueguide.evaluation.agreement import Curves

    Array = NDArray[np.float64]
    Int64 = NDArray[np.int64]

#: Curves: the estimate, the simulator's truth, a critic's value, and the share of the steps that are over.
ESTIMATE, TRUTH, VALUE, CLOCK = "progress", "true", "critic", "clock"
_BATCH = 64


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("--dataset", type=Path, required=True, help="folder of a LeRobotDataset v3")
    one.add_argument("--episodes", default="", help="such as 0-9,12 (default: all)")
    one.add_argument("--progress", type=Path, help="parquet of `progress score` (default: the dataset's own)")
    one.add_argument("--critic", default="", help="critic folder; its value of the chunks that were executed")
    one.add_argument("--gamma", type=float, default=0.98, help="discount of the STARC distance")
    one.add_argument("--show", type=int, default=8, help="episodes whose curves are drawn")
    one.add_argument("--seed", type=int, default=0, help="of the bootstrap and of the episodes drawn")
    one.add_argument("--out", type=Path, required=True, help="the page, agreement.html for example")
    add_device_argument(one)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the table, writes the page; returns all figures, also by task."""
    from valueguide.cli.progress_setup import parse_episodes
    from valueguide.data.reader import EpisodeDataset
    from valueguide.evaluation.agreement import agreement
    from valueguide.evaluation.agreement_report import agreement_table, write_agreement_page

    dataset = EpisodeDataset.open(args.dataset)
    chosen = parse_episodes(args.episodes, dataset, "--episodes")
    episodes = load_curves(args, dataset, chosen)
    pairs = agreement(episodes, args.gamma, args.seed)
    order = np.random.default_rng(args.seed).permutation(len(episodes))[: max(args.show, 0)]
    settings = {
        "dataset": str(args.dataset),
        "dataset_id": dataset.dataset_id,
        "episodes": len(episodes),
        "critic": args.critic,
        "gamma": args.gamma,
        "seed": args.seed,
        "curves": list(episodes[0].values),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_agreement_page(args.out, pairs, [episodes[i] for i in sorted(order)], settings)
    print(agreement_table(pairs))
    print(f"page in {args.out}")
    return {"settings": settings, "pairs": pairs}


def load_curves(args: argparse.Namespace, dataset: EpisodeDataset, chosen: list[int]) -> list[Curves]:
    """The curves of each episode at the frames that the model was asked about.

    Raises DataError when no episode has an estimate, or the data cannot be what the critic needs.
    """
    from valueguide.evaluation.agreement import Curves
    from valueguide.progress.columns import read_progress

    columns = read_progress(dataset, args.progress)
    rows = [_asked(dataset, columns.estimated, episode) for episode in chosen]
    kept = [(episode, frames) for episode, frames in zip(chosen, rows, strict=True) if len(frames)]
    if not kept:
        raise DataError(mismatch(str(args.dataset), "episodes with an estimate", "one or more", "none"))
    truth = all(isinstance(dataset.metadata[episode].get("progress"), list) for episode, _ in kept)
    values = _critic_values(args, dataset, kept) if args.critic else None
    out = []
    for number, (episode, frames) in enumerate(kept):
        start, end = int(dataset.episode_start[episode]), int(dataset.episode_end[episode])
        curves: dict[str, Array] = {ESTIMATE: columns.value[frames].astype(float)}
        if truth:
            curves[TRUTH] = _true_progress(dataset, episode)[frames - start]
        if values is not None:
            curves[VALUE] = values[number]
        curves[CLOCK] = (frames - start) / (end - start)
        facts = dataset.metadata[episode]
        task = str(facts.get("task_name") or dataset.instructions[dataset.instruction[start]])
        number_of = int(dataset.episode_index[episode])
        won = bool(dataset.episode_success[episode])
        out.append(Curves(task, number_of, won, frames - start, curves, _states(dataset, frames)))
    return out


def _asked(dataset: EpisodeDataset, estimated: NDArray[np.bool_], episode: int) -> Int64:
    """Frames of one episode that the model was asked about and answered."""
    start, end = int(dataset.episode_start[episode]), int(dataset.episode_end[episode])
    return start + np.flatnonzero(estimated[start:end])


def _true_progress(dataset: EpisodeDataset, episode: int) -> Array:
    """float64 (T + 1,), as the simulator recorded it. Raises DataError for another length."""
    found = np.asarray(dataset.metadata[episode]["progress"], float)
    length = int(dataset.episode_end[episode] - dataset.episode_start[episode])
    if found.shape != (length + 1,):
        where = f"{dataset.root}: episode {int(dataset.episode_index[episode])}"
        raise DataError(mismatch(where, "true progress", f"{length + 1} values", found.shape))
    return found


def _states(dataset: EpisodeDataset, frames: Int64) -> Array:
    known = [dataset.state, dataset.environment_state]
    return np.concatenate([part[frames] for part in known if part is not None], axis=1).astype(float)


def _critic_values(
    args: argparse.Namespace, dataset: EpisodeDataset, kept: list[tuple[int, Int64]]
) -> list[Array]:
    """Min over members of Q(s, what was executed from here on); NaN with fewer steps left than it scores."""
    from valueguide.cli.device import usable_device
    from valueguide.critics.scorer import LearnedCritic

    critic = LearnedCritic.load(args.critic, usable_device(args.device))
    names = tuple(dataset.features["action"].get("names") or ()) or None
    critic.check_compatible(action_names=names, state_dim=dataset.state.shape[1])
    steps = critic.executed_length
    out: list[Array] = []
    for episode, frames in kept:
        values = np.full(len(frames), np.nan)
        whole = np.flatnonzero(frames + steps <= dataset.episode_end[episode])
        for part in np.array_split(whole, -(-len(whole) // _BATCH)) if len(whole) else ():
            seen = [_observation(dataset, int(row), list(critic.spec.cameras)) for row in frames[part]]
            chunks = np.stack([dataset.action[row : row + steps] for row in frames[part]])
            values[part] = critic.score_batch(seen, chunks[:, None])[:, :, 0].min(axis=0)
        out.append(values)
    return out


def _observation(dataset: EpisodeDataset, row: int, cameras: list[str]) -> Any:
    from valueguide.types import Observation

    privileged = dataset.environment_state
    return Observation(
        {camera: dataset.image(row, camera) for camera in cameras},
        dataset.state[row],
        dataset.instructions[dataset.instruction[row]],
        0,
        None if privileged is None else privileged[row],
    )
