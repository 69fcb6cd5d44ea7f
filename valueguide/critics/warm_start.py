"""A trainer that starts from a finished critic: its weights, normalisers and instructions."""

from __future__ import annotations

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.config import TrainConfig
from valueguide.critics.trainer import CriticTrainer


def trainer_from(loaded: LoadedCritic, config: TrainConfig, device: str = "cpu") -> CriticTrainer:
    """Critic and target network both begin with the loaded weights; optimisers and the step count are new.

    config: of the training to come; it may name another algorithm than the one that made the critic.
    `trainer.embeddings` belong to `loaded.instructions`.
    """
    trainer = CriticTrainer(
        loaded.spec, loaded.network_config, config, loaded.normalizers, loaded.embeddings, device=device
    )
    trainer.critic.load_state_dict(loaded.network.state_dict())
    trainer.target.load_state_dict(loaded.network.state_dict())
    return trainer
