"""Policy improvement: which chunks are examples, what weights do, and that learning goes where they point."""

import numpy as np
import pytest
import torch
from segment_episodes import episode

from valueguide.errors import ConfigError, DataError
from valueguide.online.examples import policy_examples
from valueguide.online.improve import ImproveSettings, PolicyImprover
from valueguide.online.segments import STORES, Segment, segments_of
from valueguide.policies.flow_loss import flow_losses
from valueguide.policies.frozen_towers import PictureMemory, frozen_towers_once
from valueguide.testing.tiny_models import ACTION_DIM, SENTENCES, STATE_DIM, make_tiny_policy

HORIZON = 8


def test_the_policys_plans_and_the_humans_steps_become_examples():
    examples = policy_examples(segments_of(episode("pppppphhh"), "e"), 6)
    # Two plans of the policy (steps 0 and 4), and every step of the human with what followed.
    assert len(examples) == 5
    np.testing.assert_array_equal(examples.chunks[0, :, 0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(examples.chunks[1, :, 0], 100 + np.arange(6))
    np.testing.assert_array_equal(examples.chunks[2, :, 0], [6, 7, 8, 0, 0, 0])
    np.testing.assert_array_equal(examples.known.sum(1), [6, 6, 3, 2, 1])
    np.testing.assert_array_equal(examples.in_store("correction"), [False, False, True, True, True])
    seen = examples.observations(np.array([1, 3]))
    np.testing.assert_array_equal([o.state[0] for o in seen], [4, 7])
    # Looking back stops where the segment began.
    np.testing.assert_array_equal([o.state[0] for o in examples.observations(np.array([0, 3]), 1)], [0, 6])
    assert (examples.mc_return <= 0).all()


def test_no_example_is_an_error():
    with pytest.raises(DataError, match="states"):
        policy_examples([], 6)


def make_segment(store: str, value: float, steps: int = 12, seed: int = 0) -> Segment:
    """A human who always does `value`, in every dimension."""
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 255, (steps + 1, 64, 64, 3), dtype=np.uint8) for name in ("front", "wrist")
    }
    return Segment(
        state=rng.normal(size=(steps + 1, STATE_DIM)).astype(np.float32),
        action=np.full((steps, ACTION_DIM), value, np.float32),
        chunk_id=np.full(steps, -1),
        chunk_step=np.zeros(steps, np.int64),
        planned=np.zeros((0, HORIZON, ACTION_DIM), np.float32),
        planned_start=np.zeros(0, np.int64),
        source="human",
        end="success",
        store=store,  # type: ignore[arg-type]
        task=SENTENCES[0],
        episode=f"{store}:{seed}",
        images=images,
    )


def mean_chunk(policy, segment) -> float:
    chunks = policy.propose([[segment.observation(0), segment.observation(1)]], 16, np.array([5]))
    return float(chunks.mean())


@pytest.fixture
def tiny(tmp_path):
    return make_tiny_policy("multi_task_dit", tmp_path, num_integration_steps=4)


def test_learning_goes_to_the_weighted_examples_and_frozen_towers_stay(tiny):
    policy = tiny.adapter()
    good, bad = make_segment("correction", 2.0), make_segment("rollout", -2.0, seed=1)
    examples = policy_examples([good, bad], HORIZON)
    weights = np.where(examples.in_store("correction"), 1.0, 0.0).astype(np.float32)
    settings = ImproveSettings(steps=60, batch_size=16, learning_rate=3e-3, warmup=5)
    tower = policy.policy.observation_encoder.vision_encoder
    before = [p.clone() for p in tower.parameters()]
    improver = PolicyImprover(policy, examples, weights, settings)
    losses = [loss for _, loss in improver.train()]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert mean_chunk(policy, bad) > 0.5
    assert all(torch.equal(a, b) for a, b in zip(before, tower.parameters(), strict=True))
    assert not policy.policy.training and not any(p.requires_grad for p in policy.policy.parameters())


def test_a_run_is_a_function_of_its_seed(tmp_path):
    ends = []
    for run in range(3):
        tiny = make_tiny_policy("multi_task_dit", tmp_path)
        examples = policy_examples([make_segment("offline", 1.0)], HORIZON)
        settings = ImproveSettings(steps=3, batch_size=4, seed=run // 2)
        weights = np.ones(len(examples), np.float32)
        ends.append([loss for _, loss in PolicyImprover(tiny.adapter(), examples, weights, settings).train()])
    assert ends[0] == ends[1] != ends[2]


def test_what_was_seen_once_stands_where_the_pictures_would(tiny):
    """The same losses with and without memory, of states in two segments and back over their beginning."""
    tiny.policy.observation_encoder.vision_encoder.requires_grad_(False)
    examples = policy_examples([make_segment("offline", 0.1), make_segment("rollout", 0.2, seed=1)], HORIZON)
    improver = PolicyImprover(
        tiny.adapter(), examples, np.ones(len(examples), np.float32), ImproveSettings(steps=1)
    )
    rows, memory = np.array([0, 3, len(examples) - 1, 3]), PictureMemory()

    def losses(see):
        torch.manual_seed(0)
        return flow_losses(tiny.policy, improver._frames(rows, see))

    plain = losses(None)
    with frozen_towers_once(tiny.policy, memory) as see:
        for _ in range(2):
            torch.testing.assert_close(losses(see), plain, atol=1e-5, rtol=0)
    # Steps 0, 2, 3 and the last two, by two cameras.
    assert len(memory) == 2 * 5


def test_stores_are_drawn_by_their_ratios_whatever_their_size(tiny):
    examples = policy_examples(
        [make_segment("offline", 1.0, 40), make_segment("correction", 1.0, 4, 1)], HORIZON
    )
    settings = ImproveSettings(batch_size=4000, ratios={"offline": 0.25, "correction": 0.75, "rollout": 0.5})
    improver = PolicyImprover(tiny.adapter(), examples, np.ones(len(examples), np.float32), settings)
    drawn = examples.store[improver._rows(0)]
    assert np.mean(drawn == STORES.index("correction")) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("weights", [np.ones(3), np.zeros(12), np.full(12, -1.0), np.full(12, np.nan)])
def test_weights_that_do_not_fit_are_refused(tiny, weights):
    examples = policy_examples([make_segment("offline", 1.0)], HORIZON)
    with pytest.raises(DataError):
        PolicyImprover(tiny.adapter(), examples, weights.astype(np.float32), ImproveSettings())


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_other_flow_policies_learn_too(kind, tmp_path):
    policy = make_tiny_policy(kind, tmp_path).adapter()
    examples = policy_examples([make_segment("offline", 1.0)], HORIZON)
    settings = ImproveSettings(steps=2, batch_size=2)
    losses = list(PolicyImprover(policy, examples, np.ones(len(examples), np.float32), settings).train())
    assert len(losses) == 2


def test_a_policy_without_flow_is_refused(tmp_path):
    policy = make_tiny_policy("act", tmp_path).adapter()
    examples = policy_examples([make_segment("offline", 1.0)], HORIZON)
    with pytest.raises(ConfigError, match="policy type"):
        PolicyImprover(policy, examples, np.ones(len(examples), np.float32), ImproveSettings())
