"""A trainer that starts from a finished critic: its weights, normalisers and instructions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.config import CriticSpec, TrainConfig
from valueguide.critics.processes import ALONE, Processes
from valueguide.critics.trainer import CriticTrainer
from valueguide.errors import ConfigError, mismatch
from valueguide.types import Float32

#: Sentences -> float32 (n, L).
Embed = Callable[[list[str]], Float32]


def trainer_from(
    loaded: LoadedCritic,
    config: TrainConfig,
    device: str = "cpu",
    *,
    instructions: Sequence[str] | None = None,
    embed: Embed | None = None,
    task_of: NDArray[np.int64] | None = None,
    processes: Processes = ALONE,
) -> CriticTrainer:
    """Critic and target network both begin with the loaded weights; optimisers and the step count are new.

    config: of the training to come; it may name another algorithm than the one that made the critic. What
        only that one has (IQL's state value, Cal-QL's actor) starts fresh.
    instructions: what `trainer.embeddings` stand for, by default `loaded.instructions`. Those that `loaded`
        knows keep their embedding, the others get `embed`'s. task_of, processes: as in `CriticTrainer`.
    Raises ConfigError for an unknown instruction without `embed`, and for embeddings of another length.
    """
    trainer = CriticTrainer(
        loaded.spec,
        loaded.network_config,
        config,
        copy.deepcopy(loaded.normalizers),
        loaded.embeddings if instructions is None else _embeddings(loaded, list(instructions), embed),
        task_of,
        device,
        processes,
    )
    trainer.critic.load_state_dict(loaded.network.state_dict())
    trainer.target.load_state_dict(loaded.network.state_dict())
    return trainer


def check_spec(loaded: LoadedCritic, spec: CriticSpec, where: str) -> None:
    """Raises ConfigError naming the first input of `spec` that the loaded critic does not share.

    where: of the error's text. State names count only where both sides have some.
    """
    for name in (field.name for field in fields(spec)):
        own, wanted = getattr(loaded.spec, name), getattr(spec, name)
        unnamed = name == "state_names" and not (own and wanted)
        # The order of cameras is that in which they are encoded.
        same = list(own.items()) == list(wanted.items()) if name == "cameras" else own == wanted
        if not same and not unnamed:
            raise ConfigError(mismatch(where, name, f"{wanted}, as in the data", own))


def keep_instructions(trainer: CriticTrainer, instructions: Sequence[str], loaded: LoadedCritic) -> list[str]:
    """After training: also give `trainer.embeddings` the sentences that only the loaded critic knew.

    instructions: what the embeddings stand for. Returns what they stand for now, for `save_critic`. During
    training they would be wrong negatives: nobody knows whether they paraphrase a task of the data.
    """
    missing = [i for i, text in enumerate(loaded.instructions) if text not in instructions]
    added = torch.from_numpy(loaded.embeddings[missing]).to(trainer.device)
    trainer.embeddings = torch.cat([trainer.embeddings, added])
    return [*instructions, *(loaded.instructions[i] for i in missing)]


def _embeddings(loaded: LoadedCritic, instructions: list[str], embed: Embed | None) -> Float32:
    known = dict(zip(loaded.instructions, loaded.embeddings, strict=True))
    new = [text for text in dict.fromkeys(instructions) if text not in known]
    where = f"critic {loaded.version}"
    if new and embed is None:
        raise ConfigError(mismatch(where, "instructions", "known ones, or embed=…", repr(new[0])))
    if new and embed is not None:
        made = embed(new)
        size = loaded.embeddings.shape[1]
        if made.shape != (len(new), size):
            raise ConfigError(mismatch(where, "embeddings", f"({len(new)}, {size})", made.shape))
        known |= dict(zip(new, made, strict=True))
    return np.stack([known[text] for text in instructions])
