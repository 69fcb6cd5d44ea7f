"""A warm start begins where the critic stood, whatever trained it."""

import numpy as np
import torch
from critics_batches import INSTRUCTIONS, make_batch, make_trainer

from valueguide.critics.checkpoint import LoadedCritic, save_critic
from valueguide.critics.config import TrainConfig
from valueguide.critics.proposals import Proposals
from valueguide.critics.warm_start import trainer_from


def test_values_instructions_and_normalisers_carry_over_and_learning_goes_on(tmp_path):
    old = make_trainer("iql")
    for step in range(3):
        old.update(make_batch(seed=step))
    save_critic(tmp_path / "critic", old, INSTRUCTIONS, {})
    loaded = LoadedCritic(tmp_path / "critic")
    new = trainer_from(loaded, TrainConfig(algo="aloe", warmup_steps=1))
    batch = make_batch(seed=9)
    actions, valid = torch.from_numpy(batch.actions), torch.from_numpy(batch.valid)

    def q(trainer, network):
        encoded = network.encode(trainer.inputs(batch, following=False))
        return network(encoded, trainer.normalizers.action(actions), valid)

    expected = q(old, old.target)
    assert torch.equal(q(new, new.critic.eval()), expected) and torch.equal(q(new, new.target), expected)
    assert new.step == 0 and torch.equal(new.embeddings, old.embeddings)
    proposals = np.zeros((len(batch.reward), 2, *batch.actions.shape[1:]), np.float32)
    new.critic.train()
    new.update(batch, Proposals(following=proposals))
    assert not torch.equal(q(new, new.critic.eval()), expected)
    # The loaded critic is a copy of its own: training does not change it.
    assert torch.equal(loaded.network.state_dict()["head.first.weight"], old.target.head.first.weight)
