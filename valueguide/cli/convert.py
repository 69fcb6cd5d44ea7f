"""`valueguide convert`: a dataset with its interventions marked as another program marks them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  # for LeRobot's HIL-SERL learner: rewards and complementary_info.is_intervention
  valueguide convert --dataset runs/day1/dataset --interventions hil_serl --out runs/day1_hil

  # as lerobot-rollout --strategy.type=dagger records: the column intervention, no outcomes
  valueguide convert --dataset runs/day1/dataset --interventions dagger --out runs/day1_dagger

  # only what humans and experts did, as demonstrations (gym_manipulator, mode record)
  valueguide convert --dataset runs/day1/dataset --interventions gym_record --out runs/day1_demos

The other direction needs no command: every dataset that valueguide reads may follow any of the three.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from valueguide.data.interventions import CONVENTIONS

    parser.add_argument(
        "--dataset", type=Path, required=True, help="folder of any LeRobotDataset v3; only read"
    )
    parser.add_argument(
        "--interventions", choices=CONVENTIONS, required=True, help="LeRobot's convention to write"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for the converted dataset")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the new dataset; returns and prints what was written and what the convention cannot hold."""
    from valueguide.cli.common import progress_bar
    from valueguide.data.interventions_export import export_interventions
    from valueguide.data.reader import EpisodeDataset

    dataset = EpisodeDataset.open(args.dataset)
    with progress_bar(dataset.episodes, "episodes") as bar:
        facts = export_interventions(dataset, args.out, args.interventions, bar.update)
    by = ", ".join(f"{count} {source}" for source, count in facts["frames_of"].items())
    print(f"{facts['episodes']} episodes, {facts['frames']} frames ({by}) in {args.out}")
    if facts["left_out"]:
        lost = ", ".join(f"{count} {source}" for source, count in facts["left_out"].items())
        print(f"frames left out: {lost}")
    return facts
