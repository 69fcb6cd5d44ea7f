"""A learner's state on disk: one folder, replaced as a whole, so that a run goes on exactly or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valueguide.critics.checkpoint import TRAINING_STATE, resume_training, write_training
from valueguide.critics.folders import replacing, restore_interrupted
from valueguide.critics.manifest import read_json
from valueguide.errors import CheckpointError, mismatch
from valueguide.online.segment_file import map_tensors, write_tensors
from valueguide.online.targets import PolicyTargets

if TYPE_CHECKING:
    from valueguide.online.learner import CriticLearner

LEARNER_STATE = "learner.json"
#: The policy's chunks at the states that were asked about, see `PolicyTargets.remembered`.
PROPOSALS = "proposals.safetensors"


def save_learner(folder: Path, learner: CriticLearner) -> None:
    """Everything that `resume_learner` needs to go on bit for bit. Raises OSError when the disk refuses.

    Whenever the process dies, `folder` holds the last state that was saved, whole.
    """
    policy = learner.targets.proposer.version
    with replacing(folder) as draft:
        write_training(draft, learner.trainer)
        keep_proposals(draft / PROPOSALS, learner.targets)
        state = {
            "step": learner.trainer.step,
            "instructions": len(learner.trainer.embeddings),
            "policy": policy,
            "loader": learner.loader.state_dict(),
        }
        (draft / LEARNER_STATE).write_text(json.dumps(state))


def resume_learner(folder: Path, learner: CriticLearner) -> bool:
    """Whether there was something to go on from.

    Chunks of another policy than the learner's are not taken over. Raises CheckpointError, ConfigError or
    DataError when the state is damaged, or of another run.
    """
    restore_interrupted(folder)
    if not any((folder / name).exists() for name in (TRAINING_STATE, LEARNER_STATE)):
        return False
    state = read_json(folder / LEARNER_STATE)
    for name in ("loader", "step"):
        if name not in state:
            raise CheckpointError(f"{folder / LEARNER_STATE}: field {name!r} is missing")
    learner.loader.load_state_dict(state["loader"])
    # The journal may know sentences of later steps: the state was saved without their embeddings.
    learner.set_instructions(state.get("instructions"))
    resume_training(folder, learner.trainer)
    learner.set_instructions(None)
    if learner.trainer.step != state["step"]:
        found = f"{state['step']} in {LEARNER_STATE}"
        raise CheckpointError(mismatch(str(folder), "step", learner.trainer.step, found))
    _remember(folder, learner, state)
    return True


def keep_proposals(path: Path, targets: PolicyTargets) -> None:
    """What `targets` knows of the present policy, as a file; none where it knows nothing. Raises OSError."""
    ids, chunks = targets.remembered()
    if len(ids):
        write_tensors(path, {"ids": ids, "chunks": chunks}, {})


def recall_proposals(path: Path, targets: PolicyTargets) -> bool:
    """Whether there was such a file. Raises DataError when it is damaged or of another P."""
    if not path.exists():
        return False
    tensors, _ = map_tensors(path)
    targets.remember(tensors["ids"], np.array(tensors["chunks"]))
    return True


def _remember(folder: Path, learner: CriticLearner, state: dict[str, Any]) -> None:
    targets = learner.targets
    if state.get("policy") != targets.proposer.version or not recall_proposals(folder / PROPOSALS, targets):
        targets.remember(np.zeros(0, np.int64), np.zeros((0, targets.k, 0, 0), np.float32))
