"""`valueguide train backbone | policy | critic | online | report`: everything that learns."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from valueguide.cli.device import add_device_argument
from valueguide.cli.processes import refuse_processes, train_critic_together
from valueguide.cli.train_online import add_online_arguments
from valueguide.cli.train_report import add_report_arguments

EXAMPLES = """examples:
  # the small vision and language towers, from labelled pictures (about an hour on two cores)
  valueguide train backbone --pictures 52000 --out outputs/clip

  # a base policy from recorded demonstrations, on the frozen towers
  valueguide train policy --dataset outputs/demos --backbone outputs/clip --out outputs/policy

  # a critic from the same episodes, failures included
  valueguide train critic --dataset outputs/demos --backbone outputs/clip --algo iql --out outputs/critic

  # a critic that sees pictures, taught by one that saw the simulator's state (demos of --suite wxai-both)
  valueguide train critic --dataset outputs/both --encoder state --out outputs/teacher
  valueguide train critic --dataset outputs/both --backbone outputs/clip --algo distill \\
      --teacher outputs/teacher --out outputs/critic

  # a critic of one policy, from whatever was logged (a bag, too), starting from a critic that is there
  valueguide train critic --dataset runs/day1/dataset --dataset runs/day2/bag --algo aloe \\
      --policy outputs/policy --init outputs/critic --out outputs/critic2

  # dense rewards from the progress that `valueguide progress score` wrote beside the dataset
  valueguide train critic --dataset outputs/demos --backbone outputs/clip --progress-reward 10 \\
      --out outputs/critic3

  # ALOE by two processes (a machine with GPUs: one each); see docs/critics.md
  torchrun --nproc-per-node 2 -m valueguide.cli.main train critic --algo aloe ...

  # policy and critic learn in simulation, an operator beside them; the same command goes on after a break
  valueguide train online --tasks open_drawer,pick_can --dataset outputs/demos --out outputs/online
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="what", required=True, metavar="backbone | policy | critic | online | report"
    )
    _backbone_arguments(kinds.add_parser("backbone", help="vision and language towers"))
    _policy_arguments(kinds.add_parser("policy", help="a base policy by imitation"))
    _critic_arguments(kinds.add_parser("critic", help="a value function by offline reinforcement learning"))
    add_online_arguments(kinds.add_parser("online", help="policy and critic learn from their own episodes"))
    add_report_arguments(kinds.add_parser("report", help="runs of `train online` side by side"))


def _backbone_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=int, default=52000, help="labelled picture pairs to render")
    parser.add_argument("--picture-folder", type=Path, help="where they are kept (default: OUT/pictures)")
    parser.add_argument("--steps", type=int, default=2600, help="updates of the vision tower")
    parser.add_argument("--batch-size", type=int, default=128, help="picture pairs per update")
    parser.add_argument("--text-steps", type=int, default=1200, help="updates of the text tower")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)


def _policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True, help="folder of `train backbone`")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--state-only", action="store_true", help="look at no pictures, though there are some"
    )
    parser.add_argument("--half", action="store_true", help="store the weights in 16 bits: half the size")
    parser.add_argument("--seed", type=int, default=0)
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, required=True)


def _critic_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", type=Path, action="append", required=True, help="folder or bag; repeat to mix several"
    )
    parser.add_argument("--robot", default="", help="for a bag that does not describe its robot")
    parser.add_argument("--namespace", default=None, help="of the recorded graph, where the bag does not say")
    parser.add_argument("--backbone", type=Path, help="frozen vision tower for --encoder frozen_clip")
    parser.add_argument("--algo", choices=("iql", "calql", "aloe", "distill"), default="iql")
    parser.add_argument("--policy", default="", help="for --algo aloe: the policy whose value is learned")
    parser.add_argument(
        "--backup",
        choices=("policy", "best_of_n"),
        default="policy",
        help="for --algo aloe: the value of the policy alone, or of the best of its proposals",
    )
    parser.add_argument(
        "--proposals", type=int, default=4, help="for --algo aloe: policy chunks at each successor state"
    )
    parser.add_argument(
        "--takeover",
        choices=("failure", "bootstrap"),
        default="failure",
        help="for --algo aloe: a takeover fails the policy's steps before it, or the policy's value goes on",
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="critic folder to start from: its weights, normalisers, instructions, and its network's shape "
        "(--members and the like do not count)",
    )
    parser.add_argument(
        "--teacher", default="", help="for --algo distill: a critic of privileged states (--suite wxai-both)"
    )
    parser.add_argument(
        "--encoder",
        choices=("auto", "state", "frozen_clip", "small_film_cnn", "resnet34_film"),
        default="auto",
        help="auto: state for datasets without images, else frozen_clip",
    )
    parser.add_argument(
        "--execute", type=int, default=4, help="steps of a chunk that are executed and scored"
    )
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--gamma", type=float, default=0.98)
    parser.add_argument(
        "--progress-reward",
        type=float,
        default=0.0,
        metavar="SCALE",
        help="potential-based shaping by the progress of `progress score`, times SCALE (in steps; 0: none)",
    )
    parser.add_argument("--hl-gauss", action="store_true", help="distributional head instead of a scalar")
    parser.add_argument("--layer-norm", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--shared-output",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="one output layer, as V-GPS",
    )
    parser.add_argument(
        "--own-encoders",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="an encoder for each member, so that members can disagree; V-GPS shares one",
    )
    parser.add_argument(
        "--negative-share", type=float, default=0.1, help="swapped instructions in each batch"
    )
    parser.add_argument("--dropout", type=float, default=0.2, help="against learning small datasets by heart")
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--half", action="store_true", help="store the weights in 16 bits: half the size")
    parser.add_argument("--checkpoint-every", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="an unfinished run in this folder is resumed")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Dispatch; the heavy imports wait until the arguments are known to be good."""
    refuse_processes(args)
    if args.what == "backbone":
        from valueguide.cli.train_backbone import train_backbone

        return train_backbone(args)
    if args.what == "policy":
        from valueguide.cli.train_policy import train_policy

        return train_policy(args)
    if args.what == "report":
        from valueguide.cli.train_report import report_runs

        return report_runs(args)
    if args.what == "online":
        from valueguide.cli.train_online import train_online

        return train_online(args)
    return train_critic_together(args)
