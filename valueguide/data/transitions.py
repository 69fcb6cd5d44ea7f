"""Sparse steps-to-go labels and chunk transitions with true successors.

Labels follow V-GPS (arXiv 2410.13816, App. B.1 and its released code), with failures and time
limits labelled as what they are: r = -1 a step, and the return of a state from which the task is
never done is -1/(1-gamma).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.types import Float32

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Per-step learning signal. reward, mask, mc_return: float32 (T,); mask is 0 at terminal targets."""

    reward: Float32
    mask: Float32
    mc_return: Float32


def sparse_labels(
    length: int, success: bool, terminated: bool, gamma: float = 0.98, success_steps: int = 3
) -> Labels:
    """Labels of one episode of `length` steps; G_t = r_t + gamma * mask_t * G_{t+1}.

    Success: the last `success_steps` steps have r = 0 and mask = 0, the others r = -1.
    Terminal failure (terminated without success): the last step has r = -1/(1-gamma) and mask 0.
    Neither (truncated): r = -1 and mask 1 throughout, so the last step bootstraps from the true final
    observation; the return uses the tail -1/(1-gamma), as if the task were never done.
    """
    if not 0.0 <= gamma < 1.0:
        raise ConfigError(mismatch("labels", "gamma", "0 <= gamma < 1", gamma))
    if success_steps < 1:
        raise ConfigError(mismatch("labels", "success_steps", "1 or more", success_steps))
    if length < 1:
        raise DataError(mismatch("labels", "episode length", "1 or more", length))
    never = -1.0 / (1.0 - gamma)
    reward, mask = np.full(length, -1.0), np.ones(length)
    if success:
        reward[-success_steps:] = 0.0
        mask[-success_steps:] = 0.0
    elif terminated:
        reward[-1] = never
        mask[-1] = 0.0
    mc_return, following = np.empty(length), never
    for t in range(length - 1, -1, -1):
        following = mc_return[t] = reward[t] + gamma * mask[t] * following
    return Labels(reward.astype(np.float32), mask.astype(np.float32), mc_return.astype(np.float32))


def episode_labels(
    episode_start: Int64,
    episode_end: Int64,
    success: NDArray[np.bool_],
    terminated: NDArray[np.bool_],
    gamma: float = 0.98,
    success_steps: int = 3,
) -> Labels:
    """`sparse_labels` for many episodes end to end; success and terminated hold one value an episode."""
    parts = [
        sparse_labels(int(end - start), bool(won), bool(ended), gamma, success_steps)
        for start, end, won, ended in zip(episode_start, episode_end, success, terminated, strict=True)
    ]
    return Labels(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("reward", "mask", "mc_return"))
    )


@dataclass(frozen=True)
class ChunkTransitions:
    """For every frame t, the transition that starts there and lasts at most E steps.

    length: int64 (N,), n in 0..E: it stops at the episode's end, at the first step with mask 0
        (which it includes), and, when asked, before the source or the plan changes. 0 means that no
        transition starts here, because its successor was not recorded; see `usable`.
    reward: float32 (N,), sum over k < n of gamma^k r_{t+k}.
    discount: float32 (N,), gamma^n times the mask of the last step.
    successor: int64 (N,), the frame after the last step; N + i means the final observation of
        episode i, never a frame of another episode.
    mc_return: float32 (N,).
    executed_length: E.
    """

    length: Int64
    reward: Float32
    discount: Float32
    successor: Int64
    mc_return: Float32
    executed_length: int

    @classmethod
    def build(
        cls,
        labels: Labels,
        episode_start: Int64,
        episode_end: Int64,
        executed_length: int,
        gamma: float = 0.98,
        source: Int64 | None = None,
        *,
        chunk_id: Int64 | None = None,
        has_final: NDArray[np.bool_] | None = None,
    ) -> ChunkTransitions:
        """episode_start, episode_end: int64 (episodes,), half-open, covering all N frames in order.

        source: int64 (N,); when given, no transition contains steps of two sources (a takeover or
        hand-back ends the chunk, and the next source's first frame is the successor).
        chunk_id: int64 (N,); when given, no transition contains steps of two plans.
        has_final: bool (episodes,), False where the final observation was not recorded; an episode
        that must bootstrap from it then ends one step earlier, at its last frame.
        """
        count = len(labels.reward)
        if executed_length < 1:
            raise ConfigError(mismatch("chunk transitions", "executed length", "1 or more", executed_length))
        lengths = episode_end - episode_start
        if int(lengths.sum()) != count or np.any(lengths < 1):
            raise DataError(mismatch("chunk transitions", "frames in episodes", count, int(lengths.sum())))
        frames = np.arange(count)
        end = np.repeat(episode_end, lengths)
        episode = np.repeat(np.arange(len(lengths)), lengths)
        stop = np.minimum(end, frames + executed_length)
        stop = np.minimum(stop, _next(labels.mask == 0, count) + 1)
        if has_final is not None:
            lacking = ~has_final & (labels.mask[episode_end - 1] != 0)
            stop = np.minimum(stop, end - np.repeat(lacking, lengths))
        for owner in (source, chunk_id):
            if owner is not None:
                changes = np.append(owner[1:] != owner[:-1], False)
                stop = np.minimum(stop, _next(changes, count) + 1)
        reward, weight = np.zeros(count), 1.0
        for k in range(executed_length):
            step = np.minimum(frames + k, count - 1)
            reward += np.where(frames + k < stop, weight * labels.reward[step], 0.0)
            weight *= gamma
        length = stop - frames
        return cls(
            length=length,
            reward=reward.astype(np.float32),
            discount=np.where(length > 0, gamma**length * labels.mask[stop - 1], 0.0).astype(np.float32),
            successor=np.where(stop < end, stop, count + episode),
            mc_return=labels.mc_return,
            executed_length=executed_length,
        )

    @property
    def usable(self) -> NDArray[np.bool_]:
        """bool (N,): a transition starts here."""
        return self.length > 0

    def actions(
        self, action: Float32, starts: Int64, planned: Float32 | None = None
    ) -> tuple[Float32, NDArray[np.bool_]]:
        """From all actions (N, A): chunks float32 (B, E, A), zero where not valid, and valid (B, E).

        planned: float32 (B, E, A), the plans that were under way, NaN where there was none. A chunk that a
        terminal state cut short is then the whole plan, all of it valid: the value belongs to the plan, and
        without its last steps exactly the plans that end episodes would never be learned from.
        """
        offsets = np.arange(self.executed_length)
        valid = offsets < self.length[starts][:, None]
        steps = np.where(valid, starts[:, None] + offsets, 0)
        chunks = np.where(valid[..., None], action[steps], np.float32(0.0))
        if planned is None:
            return chunks, valid
        known = ~np.isnan(planned).any(axis=(1, 2)) & self.usable[starts] & (self.discount[starts] == 0)
        tail = known[:, None] & ~valid
        return np.where(tail[..., None], planned, chunks), valid | tail


def _next(flags: NDArray[np.bool_], count: int) -> Int64:
    """For every position the first position at or after it whose flag is set; `count` when none is."""
    positions = np.where(flags, np.arange(count), count)
    return np.minimum.accumulate(positions[::-1])[::-1]
