"""From episodes on chains to a table of values, through segments, replay, loader, proposals and trainer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from chain_worlds import GAMMA, HELD, STEPS, TASK, WHOLE, Chain, code

from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.online.replay_loader import Labelling, ReplayBatch, ReplayLoader
from valueguide.online.segments import Segment, TakeoverRule, segments_of
from valueguide.online.targets import PolicyTargets, observe_successors
from valueguide.testing.fake_replay import FakeReplayReader
from valueguide.testing.fake_table_network import chunk_codes, use_table
from valueguide.testing.fake_tables import FakeTableProposer
from valueguide.types import Episode

#: Values that no chunk of a chain has: whatever is never learned shows.
INITIAL = 7.0


def cut_up(episodes: Iterable[Episode]) -> list[Segment]:
    return [s for number, one in enumerate(episodes) for s in segments_of(one, f"chain:{number}")]


def draw(
    segments: list[Segment], takeover: TakeoverRule = "failure", coverage: int = 3, success_steps: int = HELD
) -> ReplayBatch:
    """One batch with `coverage` times as many rows as there are transitions, all equally likely."""
    labelling = Labelling(STEPS, GAMMA, success_steps, takeover)
    counts = {store: 0 for store in ("offline", "rollout", "correction")}
    for segment in segments:
        counts[segment.store] += len(labelling.apply(segment).starts)
    size = coverage * sum(counts.values())
    reader = FakeReplayReader(segments)
    return ReplayLoader(reader, labelling, size, 0, "state", ratios=counts).batch(0)


def make_trainer(chain: Chain, *, hidden: int = 4, **config) -> CriticTrainer:
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    unit = Normalizer(np.zeros(chain.states, np.float32), np.ones(chain.states, np.float32))
    return CriticTrainer(
        CriticSpec(STEPS, ("direction",), state_dim=1, environment_state_dim=chain.states),
        NetworkConfig("state", hidden=hidden, language_dim=2, use_state=False),
        TrainConfig("aloe", GAMMA, **config),
        Normalizers(Normalizer(zero, one, clip=True), Normalizer(zero, one), unit),
        np.ones((1, 2), np.float32),
    )


def chunked_td(
    chain: Chain,
    plans: np.ndarray,
    batch: ReplayBatch,
    initial: float = INITIAL,
    backup: str = "policy",
    steps: int = 80,
) -> np.ndarray:
    """The target network's Q by state and `code`, (states, 2^(E+1)), minimum over members.

    Updates of the real trainer on the same rows, each of which moves the table to the mean of its targets.
    """
    trainer = make_trainer(chain, critic_rate=1.0, warmup_steps=0, polyak=0.9, backup=backup)
    use_table(trainer, chain.states, initial)
    targets = PolicyTargets(FakeTableProposer(plans[..., None]), plans.shape[1])
    proposals = targets.propose(batch, observe_successors([TASK]))
    for _ in range(steps):
        trainer.update(batch, proposals)
    return trainer.target.table.min(0).values.numpy()


def codes_of(batch: ReplayBatch) -> tuple[np.ndarray, np.ndarray]:
    """The state and the `code` of each row."""
    assert batch.environment_state is not None
    codes = chunk_codes(torch.from_numpy(batch.actions), torch.from_numpy(batch.valid))
    return batch.environment_state.argmax(-1), codes.numpy()


def monte_carlo(chain: Chain, batch: ReplayBatch) -> np.ndarray:
    """Least squares on the returns that the rows' episodes had, as (states, 2^(E+1)); NaN where unseen."""
    state, codes = codes_of(batch)
    shape = (chain.states, 2 ** (STEPS + 1))
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (state, codes), batch.mc_return)
    np.add.at(count, (state, codes), 1)
    with np.errstate(invalid="ignore"):
        return total / count


def whole(chain: Chain, q: np.ndarray) -> np.ndarray:
    """The part of a table that belongs to whole chunks of live states, (length, 8)."""
    return q[: chain.length, [code(chunk) for chunk in WHOLE]]


@dataclass(frozen=True)
class Result:
    """Largest absolute errors over the chunks that were judged; the learned table."""

    td: float
    monte_carlo: float
    q: np.ndarray


def compare(
    name: str,
    chain: Chain,
    plans: np.ndarray,
    batch: ReplayBatch,
    *,
    initial: float = INITIAL,
    backup: str = "policy",
    early: bool = False,
    honest: ReplayBatch | None = None,
) -> Result:
    """Learn, print a line of the table in docs/critics.md, and judge.

    Judged are all whole chunks of live states, which are what a policy may plan; with `early`, also those
    that ended early in the data. honest: the batch as it should have been, for returns, if `batch` is not.
    """
    learned = chunked_td(chain, plans, batch, initial, backup)
    truth, returns = chain.true_q(plans, best=backup == "best_of_n"), monte_carlo(chain, honest or batch)
    judged = early & ~np.isnan(returns) & (np.arange(chain.states) < chain.length)[:, None]
    judged[: chain.length, [code(chunk) for chunk in WHOLE]] = True
    td = float(np.abs(learned - truth)[judged].max())
    mc = float(np.nanmax(np.abs(returns - truth)[judged]))
    print(f"\n| {name} | {len(batch.reward)} | {td:.2f} | {mc:.1f} |")
    return Result(td, mc, learned)


def executed(batch: ReplayBatch) -> np.ndarray:
    """n, how many steps of each row's chunk ran, int64 (B,)."""
    assert batch.next_index is not None
    return batch.next_index - batch.index


def rows(batch: ReplayBatch, keep: np.ndarray) -> ReplayBatch:
    """Some rows of a batch without pictures."""
    fields = {name: value[keep] for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    return replace(batch, **fields)
