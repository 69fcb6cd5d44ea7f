"""A critic network with a number of its own for every state and chunk, so that only the objective can err.

trainer = CriticTrainer(spec, network, TrainConfig("aloe", ...), normalizers, embeddings)
use_table(trainer, states=7, initial=7.0)     # from here on `update` fills a table
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from valueguide.critics.encoders import Inputs
from valueguide.critics.trainer import CriticTrainer


def chunk_codes(actions: Tensor, valid: Tensor) -> Tensor:
    """int64 (...): 1, then one binary digit for each valid step, 1 where its action is positive.

    actions: (..., E, 1); valid: bool (..., E), a prefix. Chunks of different lengths never share a code.
    """
    codes = torch.ones(actions.shape[:-2], dtype=torch.int64)
    for k in range(actions.shape[-2]):
        codes = torch.where(valid[..., k], 2 * codes + (actions[..., k, 0] > 0), codes)
    return codes


class FakeTableNetwork(nn.Module):
    """Takes the place of `CriticNetwork`: table, (M, states, 2^(E+1)), by state and `chunk_codes`.

    The state is the place of the 1 in `environment_state`. Each row's gradient of a mean squared error over
    M x B is divided by the number of rows of its cell, so that gradient descent with rate 1 moves each seen
    cell to the mean of its targets, whatever its share of the batch; other cells stay as they are.
    """

    bins = None

    def __init__(self, states: int, steps: int, members: int, initial: float) -> None:
        super().__init__()
        start = torch.full((members, states, 2 ** (steps + 1)), initial)
        # Members begin apart, the first one lowest.
        self.table = nn.Parameter(start + torch.arange(members)[:, None, None])

    def encode(self, inputs: Inputs) -> Tensor:
        """The states, int64 (B,)."""
        assert inputs.environment_state is not None
        return inputs.environment_state.argmax(-1)

    def outputs(self, features: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """(M, B, 1) for one chunk (B, E, 1) for each state."""
        cells = features * self.table.shape[2] + chunk_codes(actions, valid)
        q = self.table.flatten(1)[:, cells]
        if q.requires_grad:
            scale = q.numel() / (2.0 * torch.bincount(cells)[cells])
            q.register_hook(lambda gradient: gradient * scale)
        return q.unsqueeze(-1)

    def score_many(self, features: Tensor, actions: Tensor, valid: Tensor | None = None) -> Tensor:
        """(M, B, P) for P whole chunks (B, P, E, 1) for each state."""
        every = actions.new_ones(actions.shape[:-1], dtype=torch.bool)
        return self.table[:, features[:, None], chunk_codes(actions, every)]

    def value(self, outputs: Tensor) -> Tensor:
        """(M, B)"""
        return outputs.squeeze(-1)


def use_table(trainer: CriticTrainer, states: int, initial: float) -> FakeTableNetwork:
    """Give an `aloe` trainer a table that starts at `initial`, with the members of its network."""
    table = FakeTableNetwork(states, trainer.spec.executed_length, trainer.network.members, initial)
    trainer.critic = trainer.modules["critic"] = table  # type: ignore[assignment]
    trainer.target = copy.deepcopy(table).requires_grad_(False).eval()  # type: ignore[assignment]
    trainer.optimisers["critic"] = torch.optim.SGD(table.parameters(), lr=trainer.config.critic_rate)
    return table
