"""Dense rewards by potential-based shaping (Ng, Harada and Russell 1999): r + gamma * Phi(s') - Phi(s).

Shaping moves every value by -Phi(s) and so changes no choice among the actions of a state, if the potential
of a terminal state is 0. Here that holds exactly: wherever a step's target is terminal (mask 0), its
successor's potential counts as 0, whatever is known of the picture behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.data.transitions import Int64, Labels
from valueguide.errors import DataError, mismatch
from valueguide.types import Float32


@dataclass(frozen=True)
class Shaped:
    """labels: with the shaped reward and its return. unshaped: steps whose reward stayed as it was, because a
    potential that it needs is missing."""

    labels: Labels
    unshaped: int


def shape_rewards(
    labels: Labels, episode_start: Int64, episode_end: Int64, potential: Float32, gamma: float
) -> Shaped:
    """Labels of all N frames, with dense rewards.

    episode_start, episode_end: int64 (episodes,), half-open, covering all frames in order.
    potential: float32 (N + episodes,), of every frame, then of each episode's final observation, in units of
        the reward; NaN where it is missing. A step is shaped only if all that it needs is there; an episode
        without any potential is left as it is. Where some are missing within an episode, values before and
        behind the gap no longer move by -Phi alone.

    The return takes in what `sparse_labels` assumes behind a time limit: the value that lies there
    moves by -Phi of the final observation, if that is known.
    Raises DataError for potentials of the wrong shape, or infinite.
    """
    count, episodes = len(labels.reward), len(episode_start)
    if potential.shape != (count + episodes,) or np.isinf(potential).any():
        found = f"shape {potential.shape}, {int(np.isinf(potential).sum())} infinite"
        raise DataError(mismatch("shaping", "potential", f"({count + episodes},), none infinite", found))
    following = np.arange(1, count + 1)
    following[episode_end - 1] = count + np.arange(episodes)
    phi = potential.astype(np.float64)
    ahead = np.where(labels.mask == 0, 0.0, gamma * phi[following])
    change = ahead - phi[:count]
    known = ~np.isnan(change)
    reward = labels.reward + np.where(known, change, 0.0)
    behind = np.nan_to_num(phi[count:])
    parts = [
        _returns(reward[start:end], labels, start, end, gamma, final)
        for start, end, final in zip(episode_start, episode_end, behind, strict=True)
    ]
    shaped = Labels(
        reward.astype(np.float32), labels.mask, np.concatenate(parts or [reward]).astype(np.float32)
    )
    return Shaped(shaped, int((~known).sum()))


def _returns(
    reward: NDArray[np.float64], labels: Labels, start: int, end: int, gamma: float, final: float
) -> NDArray[np.float64]:
    """G_t = r_t + gamma * mask_t * G_{t+1} with the tail that the labels' own return has."""
    mask = labels.mask[start:end].astype(np.float64)
    following = 0.0
    if mask[-1] and gamma:
        following = float(labels.mc_return[end - 1] - labels.reward[end - 1]) / gamma - final
    out = np.empty(end - start)
    for t in range(end - start - 1, -1, -1):
        following = out[t] = reward[t] + gamma * mask[t] * following
    return out
