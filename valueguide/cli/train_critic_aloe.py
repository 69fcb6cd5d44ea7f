"""`train critic --algo aloe`: chunked TD to a policy, on logged episodes cut into segments.

The datasets' episodes become a replay beside --out, and the learner of `train online` does the rest. So a
takeover is labelled by one rule whether it was logged or happens now, states have ids that are unique across
datasets, and a critic of cached features still hands the policy the frames that it was recorded with. The
price is disk space: the pictures that are needed lie there decoded.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.cli.common import progress_bar
from valueguide.cli.train_critic import Run
from valueguide.critics.config import CriticSpec
from valueguide.critics.trainer import CriticTrainer
from valueguide.data.layout import read_json, write_json
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.online.learner import CriticLearner, LearnerSettings
from valueguide.online.learner_state import PROPOSALS, keep_proposals, recall_proposals
from valueguide.online.replay import ReplayWriter
from valueguide.online.segments import Segment, dataset_segments
from valueguide.policies.adapter import LeRobotPolicy
from valueguide.policies.load import load_policy
from valueguide.types import Float32

#: Written last: a replay without it was cut off and is made anew.
_MADE_FROM = "made_from.json"


@dataclass(frozen=True)
class Source:
    """A dataset, the episodes of it to learn from, and what is known of its frames beside what was recorded.

    features: float32 (N + episodes, F) or None, rows as in `EpisodeDataset`: of a critic that reads such.
    potential: float32 (N + episodes,) or None, see `shape_rewards`.
    """

    dataset: EpisodeDataset
    episodes: Sequence[int]
    features: Float32 | None
    potential: Float32 | None = None


def aloe_run(
    args: argparse.Namespace,
    trainer: CriticTrainer,
    instructions: list[str],
    sources: Sequence[Source],
    init: str,
) -> Run:
    """instructions: what `trainer.embeddings` stand for. init: version of the critic it started from, or "".

    Raises CheckpointError for a damaged policy, ConfigError or DataError where it does not fit the data,
    ConfigError where the replay beside --out belongs to another run.
    """
    processes = trainer.processes
    policy = load_policy(args.policy, str(trainer.device))
    check_policy(policy, trainer.spec, sources)
    settings = LearnerSettings(
        args.batch_size,
        args.proposals,
        {"offline": 1.0},
        args.takeover,
        # Nothing is ever dropped, which an exact resumption builds on.
        capacity=sum(source.dataset.rows for source in sources),
        seed=args.seed,
    )
    cameras = set(policy.cameras)
    if trainer.network.encoder not in ("state", "frozen_clip"):
        cameras |= set(trainer.spec.cameras)
    run = {
        "policy": policy.version,
        "init": init,
        "proposals": args.proposals,
        "takeover": args.takeover,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    folder = args.out.parent / f"{args.out.name}.replay"
    with processes.leader_first():
        fill_replay(folder, sources, sorted(cameras), run)
    learner = CriticLearner(folder, trainer, instructions, policy, settings)
    targets = learner.targets
    known = folder / (PROPOSALS if processes.leads else f"{processes.rank}-{PROPOSALS}")
    recall_proposals(known, targets)

    def updates() -> Generator[dict[str, float]]:
        yield from learner.learn(args.steps)

    def report() -> dict[str, Any]:
        return {name: getattr(targets, name) for name in ("policy_share", "hit_rate", "policy_s", "calls")}

    def save() -> None:
        try:
            keep_proposals(known, targets)
        except OSError as error:
            raise DataError(f"{known}: proposals not kept: {error}") from error

    return Run(updates(), {"policy_version": policy.version, "takeover": args.takeover}, report, save)


def check_policy(policy: LeRobotPolicy, spec: CriticSpec, sources: Sequence[Source]) -> None:
    """Ask the policy about one recorded state of each dataset, before anything is written.

    Raises ConfigError when its chunks are no chunks for the critic; the policy itself raises DataError for an
    observation that it cannot read, and ConfigError if it needs more than one.
    """
    for source in sources:
        first = source.dataset.to_episode(int(source.episodes[0])).steps[0].observation
        chunks = policy.propose([first], 1, np.zeros(1, np.int64))
        steps, size = chunks.shape[2:]
        if steps < spec.executed_length or size != spec.action_dim:
            wanted = f"{spec.executed_length} steps or more of {spec.action_dim} numbers"
            raise ConfigError(mismatch("--policy", "chunks", wanted, f"{steps} steps of {size}"))


def fill_replay(folder: Path, sources: Sequence[Source], cameras: Sequence[str], run: dict[str, Any]) -> None:
    """Put the segments of all episodes into the replay `folder`; a complete one is left as it is.

    All of them go to the store "offline", so that every transition is equally likely, as with the other
    algorithms. cameras: whose pictures are kept. run: further settings that a resumed run must share.
    Raises ConfigError, naming what differs, when the replay was made for another run.
    """
    made_from = run | {
        "datasets": [source.dataset.dataset_id for source in sources],
        "episodes": [len(source.episodes) for source in sources],
        "cameras": list(cameras),
        "potentials": [_digest(source.potential) for source in sources],
    }
    if (folder / _MADE_FROM).exists():
        found = read_json(folder / _MADE_FROM)
        for name, value in made_from.items():
            if found.get(name) != value:
                hint = "Use a new --out"
                raise ConfigError(mismatch(str(folder / _MADE_FROM), name, value, found.get(name), hint))
        return
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(len(source.episodes) for source in sources)
    with ReplayWriter(folder) as writer, progress_bar(total, "episodes to segments") as bar:
        for source in sources:
            for number in source.episodes:
                for segment in dataset_segments(source.dataset, int(number), store="offline"):
                    writer.append(_completed(segment, source, int(number), cameras))
                bar.update(1)
    write_json(folder / _MADE_FROM, made_from)


def _completed(segment: Segment, source: Source, number: int, cameras: Sequence[str]) -> Segment:
    """The segment with features and potentials of its T + 1 frames, and pictures of `cameras` only."""
    dataset = source.dataset
    start = int(dataset.episode_start[number]) + segment.first_step
    rows = np.arange(start, start + segment.steps + 1)
    # After an episode's last frame comes its final observation, not the next episode.
    rows[-1] = rows[-1] if rows[-1] < dataset.episode_end[number] else dataset.frames + number
    return replace(
        segment,
        images={name: segment.images[name] for name in cameras},
        features=None if source.features is None else source.features[rows],
        potential=None if source.potential is None else source.potential[rows],
    )


def _digest(potential: Float32 | None) -> str | None:
    return None if potential is None else hashlib.sha256(potential.tobytes()).hexdigest()
