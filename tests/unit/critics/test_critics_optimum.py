"""Both objectives find the known optimum of a small decision process.

Four states in a row. In each, one sign of the one-dimensional action leads on and the other back;
leading on from the last state ends the episode. Each step costs 1, the last one nothing.
"""

import numpy as np
import pytest
import torch

from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.types import ChunkBatch

GAMMA, STATES = 0.9, 4
ONWARD = np.array([1, -1, -1, 1])
#: By hand, the better action: 0; -1; -1 - 0.9; -1 - 0.9 * 1.9. The worse one: -1 + 0.9 * V(one back).
OPTIMUM = np.array([[-3.439, -2.71], [-3.439, -1.9], [-2.71, -1.0], [-1.9, 0.0]])


def _step(state, action):
    onward = np.sign(action) == ONWARD[state]
    done = onward & (state == STATES - 1)
    following = np.where(onward, np.minimum(state + 1, STATES - 1), np.maximum(state - 1, 0))
    return following, np.where(done, 0.0, -1.0), np.where(done, 0.0, GAMMA)


def _fixed_point(expectile):
    """Exact Q (states, [back, onward]) of IQL for data that takes both actions equally often."""
    q = np.zeros((STATES, 2))
    for _ in range(300):
        value = expectile * q.max(1) + (1 - expectile) * q.min(1)
        for column, sign in enumerate((-1, 1)):
            following, reward, discount = _step(np.arange(STATES), sign * ONWARD)
            q[:, column] = reward + discount * value[following]
    return q


def _batch(state, action, returns):
    column = np.zeros((len(state), 1), np.float32)
    following, reward, discount = _step(state, action)
    return ChunkBatch(
        state=column,
        next_state=column,
        instruction=np.zeros(len(state), int),
        actions=action.astype(np.float32)[:, None, None],
        valid=np.ones((len(state), 1), bool),
        reward=reward.astype(np.float32),
        discount=discount.astype(np.float32),
        mc_return=returns.astype(np.float32),
        index=np.arange(len(state)),
        environment_state=np.eye(STATES, dtype=np.float32)[state],
        next_environment_state=np.eye(STATES, dtype=np.float32)[following],
    )


def _learn(algo, steps, draw, calibrated=True, **config):
    """Q (states, [back, onward]) after `steps` updates, minimum over the target's members."""
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    unit = Normalizer(np.zeros(STATES, np.float32), np.ones(STATES, np.float32))
    trainer = CriticTrainer(
        CriticSpec(1, ("a",), state_dim=1, environment_state_dim=STATES),
        NetworkConfig("state", hidden=32, language_dim=2, use_state=False),
        TrainConfig(algo, GAMMA, critic_rate=3e-3, actor_rate=1e-3, warmup_steps=10, polyak=0.05, **config),
        Normalizers(Normalizer(zero, one, clip=True), Normalizer(zero, one), unit),
        np.ones((1, 2), np.float32),
    )
    rng = np.random.default_rng(0)
    for _ in range(steps):
        state, action = rng.integers(0, STATES, 64), draw(rng)
        known = OPTIMUM[state, (np.sign(action) == ONWARD[state]).astype(int)]
        trainer.update(_batch(state, action, known if calibrated else np.full(64, -np.inf)))
    states = np.repeat(np.arange(STATES), 2)
    batch = _batch(states, np.array([-1.0, 1.0] * STATES) * ONWARD[states], np.zeros(8))
    with torch.no_grad():
        features = trainer.target.encode(trainer.inputs(batch, following=False))
        actions = trainer.normalizers.action(torch.from_numpy(batch.actions))
        q = trainer.target(features, actions, torch.from_numpy(batch.valid))
    return q.min(0).values.view(STATES, 2).numpy()


def test_the_optimum_by_hand_solves_the_bellman_equation():
    np.testing.assert_allclose(_fixed_point(1.0), OPTIMUM, atol=1e-9)


def test_iql_finds_its_exact_fixed_point_and_the_optimum():
    q = _learn("iql", 450, lambda rng: rng.choice([-1.0, 1.0], 64), expectile=0.97)
    print(
        "IQL: to its fixed point", abs(q - _fixed_point(0.97)).max(), "to the optimum", abs(q - OPTIMUM).max()
    )
    np.testing.assert_allclose(q, _fixed_point(0.97), atol=0.1)
    np.testing.assert_allclose(q, OPTIMUM, atol=0.3)
    assert (q[:, 1] > q[:, 0] + 0.3).all()


def test_cal_ql_finds_the_optimum_where_plain_cql_stays_far_below():
    def uniform(rng):
        return rng.uniform(-1, 1, 64)

    q = _learn("calql", 350, uniform, conservative_weight=2.0)
    plain = _learn("calql", 250, uniform, conservative_weight=2.0, calibrated=False)
    best = OPTIMUM[:, 1]
    np.testing.assert_allclose(q[:, 1], best, atol=0.4)
    assert (q[:, 1] > q[:, 0]).all()
    assert (plain[:, 1] - best).min() < -0.8


@pytest.mark.parametrize("terminal", [0, 3])
def test_the_decision_process_ends_only_in_its_last_state(terminal):
    _, reward, discount = _step(np.array([terminal]), ONWARD[[terminal]])
    assert (reward[0] == 0) == (discount[0] == 0) == (terminal == STATES - 1)
