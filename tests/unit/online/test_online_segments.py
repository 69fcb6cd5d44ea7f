"""Episodes are cut at takeovers and hand-backs, and nothing learned crosses a cut."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_episodes import LETTERS, episode, observation

from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError
from valueguide.online.segments import dataset_segments, segment_transitions, segments_of

GAMMA = 0.5
NEVER = -1 / (1 - GAMMA)


def cuts(commanders, ending="success", **settings):
    return [
        (s.first_step, s.steps, s.source, s.end, s.store)
        for s in segments_of(episode(commanders, ending), "e", **settings)
    ]


def test_takeover_and_handback_by_hand():
    assert cuts("ppppphhhpp") == [
        (0, 5, "policy", "takeover", "rollout"),
        (5, 3, "human", "handback", "correction"),
        (8, 2, "policy", "success", "rollout"),
    ]


def test_holds_are_dropped_and_do_not_hide_who_comes_next():
    assert cuts("pp--hh-pp-", "failure") == [
        (0, 2, "policy", "takeover", "rollout"),
        (4, 2, "human", "handback", "correction"),
        (7, 2, "policy", "failure", "rollout"),
    ]
    assert cuts("pp-pp", "limit") == [
        (0, 2, "policy", "truncated", "rollout"),
        (3, 2, "policy", "truncated", "rollout"),
    ]
    assert cuts("---", "limit") == []


def test_stores_by_who_acted_unless_said():
    assert cuts("eee") == [(0, 3, "expert", "success", "offline")]
    assert cuts("hh") == [(0, 2, "human", "success", "offline")]
    assert {store for *_, store in cuts("pphh", store="offline")} == {"offline"}


def test_an_unknown_final_observation_is_no_successor():
    assert cuts("ppph", "limit", has_final=False) == [(0, 3, "policy", "takeover", "rollout")]
    assert cuts("pp", "limit", has_final=False)[0][1] == 1
    assert cuts("pp", "success", has_final=False)[0][1] == 2


def test_each_segment_ends_with_the_observation_in_which_the_next_one_began():
    human = segments_of(episode("pphhp", pictures=True), "e")[1]
    np.testing.assert_array_equal(human.state, [[2, -2], [3, -3], [4, -4]])
    np.testing.assert_array_equal(human.environment_state, [[2.5], [3.5], [4.5]])
    np.testing.assert_array_equal(human.images["front"][:, 0, 0, 0], [2, 3, 4])
    np.testing.assert_array_equal(human.action, [[2], [3]])
    assert human.observation(2).state.tolist() == [4, -4]


def test_plans_are_kept_once_each_at_the_step_where_they_start():
    first = segments_of(episode("ppppp", replan=3, horizon=4), "e")[0]
    np.testing.assert_array_equal(first.planned_start, [0, 3])
    np.testing.assert_array_equal(first.planned[..., 0], [[0, 1, 2, 3], [100, 101, 102, 103]])
    assert (first.policy_version, first.critic_version) == ("base-1", "aloe-2")


def test_a_plan_resumed_after_a_pause_does_not_start_again():
    made = episode("ppp-pp", "limit")
    for step in made.steps[4:]:
        step.chunk_id, step.chunk_step = 0, 3
    before, after = segments_of(made, "e")
    assert before.planned_start.tolist() == [0]
    assert after.planned_start.tolist() == []
    assert segment_transitions(after, 4).starts.tolist() == []


def test_pictures_that_some_steps_lack_are_an_error_with_a_hint():
    made = episode("ppp", pictures=True)
    made.steps[1].observation = observation(1)
    with pytest.raises(DataError, match=r"step 1: cameras: expected \['front'\], found none.*Record every"):
        segments_of(made, "e")


def test_malformed_segments_are_refused():
    good = segments_of(episode("pp"), "e")[0]
    with pytest.raises(DataError, match="state: expected float32 of 2 dimensions and 3 rows, found float64"):
        type(good)(**{**vars(good), "state": good.state.astype(np.float64)})
    with pytest.raises(DataError, match="end: expected"):
        type(good)(**{**vars(good), "end": "tired"})


def labels(segment, executed=3, **settings):
    return segment_transitions(segment, executed, GAMMA, **settings)


def test_takeover_rules_by_hand():
    policy = segments_of(episode("pppppph", replan=4), "e")[0]
    failed = labels(policy, 4)
    assert failed.starts.tolist() == [0, 4]
    # -1 -0.5 -0.25 -0.125; then -1 and half of the failure value -2, and no bootstrap.
    np.testing.assert_allclose(failed.chunks.reward[[0, 4]], [-1.875, -2.0])
    np.testing.assert_allclose(failed.chunks.discount[[0, 4]], [GAMMA**4, 0.0])
    assert failed.chunks.successor[[0, 4]].tolist() == [4, 6]
    assert failed.cut[[0, 4]].tolist() == [False, True]
    kept = labels(policy, 4, takeover="bootstrap")
    np.testing.assert_allclose(kept.chunks.reward[[0, 4]], [-1.875, -1.5])
    np.testing.assert_allclose(kept.chunks.discount[[0, 4]], [GAMMA**4, GAMMA**2])
    assert kept.cut[[0, 4]].tolist() == [False, True]


def test_a_plan_that_ran_as_far_as_meant_was_not_cut():
    assert not labels(segments_of(episode("pppph", replan=4), "e")[0], 4).cut.any()
    # Only four steps were planned, so four of at most six is all there was.
    short = segments_of(episode("pppph", replan=4, horizon=4), "e")[0]
    assert not labels(short, 6).cut.any()
    assert labels(segments_of(episode("pppph", replan=4, horizon=5), "e")[0], 6).cut[0]
    # With prefetch the plan's first two steps had passed: six planned, four left, all of which ran.
    late = episode("pppph", replan=4, horizon=6)
    for step in late.steps[:4]:
        step.chunk_step += 2
    assert not labels(segments_of(late, "e")[0], 6).cut.any()


def test_terminal_inside_a_chunk_and_truncation():
    won = labels(segments_of(episode("pppp", "success"), "e")[0], 4, success_steps=2)
    np.testing.assert_allclose(
        (won.chunks.reward[0], won.chunks.discount[0], won.chunks.length[0]), (-1.5, 0, 3)
    )
    lost = labels(segments_of(episode("pppp", "failure"), "e")[0], 4)
    np.testing.assert_allclose((lost.chunks.reward[0], lost.chunks.discount[0]), (-1.75 + NEVER / 8, 0))
    stopped = labels(segments_of(episode("pp", "limit"), "e")[0], 4)
    np.testing.assert_allclose((stopped.chunks.reward[0], stopped.chunks.discount[0]), (-1.5, GAMMA**2))
    assert stopped.chunks.successor[0] == 2


def test_monte_carlo_goes_on_through_whoever_commands():
    whole = episode("pphhp", "success")
    returns = [labels(s, success_steps=1).chunks.mc_return for s in segments_of(whole, "e")]
    # Four steps of -1 and a free last one, discounted by one half, whoever took them.
    np.testing.assert_allclose(np.concatenate(returns), [-1.875, -1.75, -1.5, -1.0, 0.0])
    unknown = segments_of(whole, "e")[0]
    unknown = type(unknown)(**{**vars(unknown), "episode_success": None})
    assert np.isneginf(labels(unknown).chunks.mc_return).all()


@pytest.mark.parametrize("rule, ending", [("failure", 0.0), ("bootstrap", 0.75)])
def test_potentials_move_rewards_by_what_is_gained(rule, ending):
    """By hand: r + gamma * Phi(s') - Phi(s) telescopes over a chunk, and a terminal state has potential 0."""
    plain = segments_of(episode("pppppph", replan=4), "e")[0]
    shaped = replace(plain, potential=np.array([0.5, 0.1, 0.2, 0.3, 0.6, 0.7, 0.75], np.float32))
    before, after = labels(plain, 4, takeover=rule).chunks, labels(shaped, 4, takeover=rule).chunks
    np.testing.assert_allclose(
        (after.reward - before.reward)[[0, 4]], [GAMMA**4 * 0.6 - 0.5, GAMMA**2 * ending - 0.6], atol=1e-6
    )
    np.testing.assert_array_equal(after.discount, before.discount)
    np.testing.assert_allclose(after.mc_return - before.mc_return, -shaped.potential[:-1], atol=1e-6)


def test_a_step_without_a_potential_keeps_its_reward():
    plain = segments_of(episode("pppp", "success"), "e")[0]
    shaped = replace(plain, potential=np.array([0.5, np.nan, 0.2, 0.3, np.nan], np.float32))
    change = (
        labels(shaped, 1, success_steps=1).chunks.reward - labels(plain, 1, success_steps=1).chunks.reward
    )
    np.testing.assert_allclose(change, [0, 0, GAMMA * 0.3 - 0.2, -0.3], atol=1e-6)
    with pytest.raises(DataError, match=r"potential: expected float32 of 1 dimensions and 5 rows"):
        replace(plain, potential=np.zeros(4, np.float32))


def test_whole_plans_are_what_was_planned_from_each_start():
    policy, human = segments_of(episode("pppppphhh", replan=4, horizon=6), "e")
    np.testing.assert_array_equal(labels(policy, 4).plans[..., 0], [[0, 1, 2, 3], [100, 101, 102, 103]])
    np.testing.assert_array_equal(labels(human, 2).plans[..., 0], [[6, 7], [7, 8], [8, np.nan]])
    made = labels(policy, 4)
    actions, valid = made.chunks.actions(policy.action, made.starts, made.plans)
    np.testing.assert_array_equal(actions[1, :, 0], [4, 5, 102, 103])  # executed, then as planned
    assert valid.all()


def test_a_humans_steps_start_everywhere_or_end_to_end():
    human = segments_of(episode("p" + "h" * 7), "e")[1]
    assert labels(human).starts.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert labels(human, every_step=False).starts.tolist() == [0, 3, 6]


def test_bad_settings_are_one_clear_error():
    with pytest.raises(ConfigError, match="takeover: expected .*failure.*, found 'ignore'"):
        labels(segments_of(episode("pp"), "e")[0], takeover="ignore")
    with pytest.raises(ConfigError, match="executed length: expected 1 or more, found 0"):
        labels(segments_of(episode("pp"), "e")[0], 0)


@settings(max_examples=300, deadline=None)
@given(
    commanders=st.text("ph-e", min_size=1, max_size=30),
    ending=st.sampled_from(["success", "failure", "limit"]),
    executed=st.integers(1, 7),
    replan=st.integers(1, 6),
    rule=st.sampled_from(["failure", "bootstrap"]),
    every_step=st.booleans(),
)
def test_nothing_learned_crosses_a_boundary(commanders, ending, executed, replan, rule, every_step):
    made = episode(commanders, ending, replan=replan, horizon=6)
    covered = np.zeros(len(commanders), int)
    seen = 0
    for segment in segments_of(made, "e"):
        first, stop = segment.first_step, segment.first_step + segment.steps
        assert first >= seen  # in order, and never the same step twice
        seen = stop
        own = {LETTERS[letter] for letter in commanders[first:stop]}
        assert own == {segment.source} and segment.source != "hold"
        covered[first:stop] += 1
        following = commanders[stop:].replace("-", "")[:1]
        by_hand = segment.source != "policy"
        if segment.end == "takeover":
            assert not by_hand and following in ("h", "e")
        elif segment.end == "handback":
            assert by_hand and following and LETTERS[following] != segment.source
        elif segment.end in ("success", "failure"):
            assert not following and ending == segment.end
        else:
            assert ending == "limit" if not following else LETTERS[following] == segment.source

        found = segment_transitions(segment, executed, GAMMA, takeover=rule, every_step=every_step)
        chunks = found.chunks
        used = np.zeros(segment.steps, int)
        for start in found.starts:
            length, after = chunks.length[start], chunks.successor[start]
            assert 1 <= length <= executed and after == start + length <= segment.steps
            assert len(set(segment.chunk_id[start:after])) == 1 or by_hand
            used[start:after] += 1
            terminal = chunks.discount[start] == 0
            if after == segment.steps:
                failed = segment.end == "failure" or (segment.end == "takeover" and rule == "failure")
                assert terminal == (failed or segment.end == "success")
                penalty = NEVER * GAMMA ** (length - 1) if failed else None
                if penalty is not None:
                    np.testing.assert_allclose(
                        chunks.reward[start], -sum(GAMMA**k for k in range(length - 1)) + penalty, rtol=1e-6
                    )
            else:
                assert terminal == (segment.end == "success" and after > segment.steps - 3)
            if not terminal:
                np.testing.assert_allclose(chunks.discount[start], GAMMA**length, rtol=1e-6)
        if not by_hand or not every_step:
            assert used.max(initial=0) <= 1
        if not by_hand:
            assert set(found.starts) == set(segment.planned_start)
        assert not found.cut.any() or segment.end == "takeover"
        assert np.all(chunks.successor[found.cut] == segment.steps)
    assert covered.tolist() == [letter != "-" for letter in commanders]


def test_datasets_take_the_same_path(tmp_path):
    made = episode("pppphhh-pp", pictures=True)
    spec = DatasetSpec.from_episode(made, 10, horizon=6)
    with EpisodeWriter(tmp_path, spec) as writer:
        writer.save(made)
    dataset = EpisodeDataset.open(tmp_path)
    stored, direct = dataset_segments(dataset, 0), segments_of(made, f"{dataset.dataset_id}:0")
    assert len(stored) == len(direct) == 3
    for a, b in zip(stored, direct, strict=True):
        assert a.end == b.end and a.episode == b.episode and a.store == b.store
        for name in ("state", "action", "planned", "planned_start", "chunk_id", "environment_state"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(a.images["front"], b.images["front"])
