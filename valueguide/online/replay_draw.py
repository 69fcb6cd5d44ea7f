"""Which transition each row of a batch is: stores in stated shares, recent segments more often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import ConfigError, mismatch
from valueguide.online.segments import STORES, Store

Int64 = NDArray[np.int64]
DEFAULT_RATIOS: dict[Store, float] = {"offline": 0.25, "rollout": 0.5, "correction": 0.25}


def checked_ratios(ratios: Mapping[Store, float]) -> dict[Store, float]:
    """Raises ConfigError for unknown stores and for numbers that are no shares."""
    values = np.array(list(ratios.values()), np.float64)
    if set(ratios) - set(STORES) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        expected = f"numbers of 0 or more, not all 0, for some of {STORES}"
        raise ConfigError(mismatch("replay", "ratios", expected, dict(ratios)))
    return dict(ratios)


@dataclass(frozen=True)
class Population:
    """The segments that may be drawn from, P of them, and how likely each is.

    shares: store -> share of a batch's rows. A store without transitions gives its share to the others,
        in proportion to theirs.
    probability: float64 (P,), of a row to come from each segment.
    """

    shares: dict[Store, float]
    probability: NDArray[np.float64]
    transitions: Int64

    @classmethod
    def build(
        cls,
        stores: Sequence[Store],
        transitions: Sequence[int],
        ratios: Mapping[Store, float],
        half_life: Mapping[Store, float],
    ) -> Population:
        """stores, transitions: one a segment, oldest first: its store and how many transitions it holds.

        half_life: store -> segments after which one is half as likely per transition; 0 or absent: all of
            the store's transitions are equally likely.
        """
        count = np.array(transitions, np.int64).reshape(-1)
        weight = np.zeros(len(count))
        present: dict[Store, NDArray[np.bool_]] = {}
        for store in STORES:
            mine = np.array([one == store for one in stores], bool) & (count > 0)
            if not mine.any() or ratios.get(store, 0.0) <= 0.0:
                continue
            age = np.arange(int(mine.sum()))[::-1]
            life = half_life.get(store, 0.0)
            weight[mine] = count[mine] * (0.5 ** (age / life) if life > 0 else 1.0)
            present[store] = mine
        total = sum(ratios[store] for store in present)
        shares = {store: ratios[store] / total for store in present}
        probability = np.zeros(len(count))
        for store, mine in present.items():
            probability[mine] = shares[store] * weight[mine] / weight[mine].sum()
        return cls(shares, probability, count)

    @property
    def empty(self) -> bool:
        return not self.shares

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Int64, Int64]:
        """For each row a segment's place in the population and a transition's place in that segment."""
        chances = rng.random((2, rows))
        reach = np.cumsum(self.probability)
        segment = np.searchsorted(reach, chances[0] * reach[-1], side="right")
        segment = np.minimum(segment, np.flatnonzero(self.probability)[-1])
        limit = self.transitions[segment]
        place = np.minimum((chances[1] * limit).astype(np.int64), limit - 1)
        return segment.astype(np.int64), place
