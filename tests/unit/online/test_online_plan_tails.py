"""A plan that a success, a failure or a takeover cut short is drawn whole: its value belongs to the plan."""

from __future__ import annotations

import numpy as np
import pytest
from segment_episodes import episode

from valueguide.online.replay_loader import Labelling, ReplayLoader
from valueguide.online.segments import segments_of
from valueguide.testing.fake_replay import FakeReplayReader


def _last_row(commanders, ending, takeover="failure"):
    """Actions, valid and discount of the transition that begins at step 4, where the second plan starts."""
    policy = segments_of(episode(commanders, ending), "e")[0]
    labelling = Labelling(4, gamma=0.5, success_steps=1, takeover=takeover)
    batch = ReplayLoader(FakeReplayReader([policy]), labelling, 16, observation="state").batch(0)
    row = np.flatnonzero(batch.state[:, 0] == 4)[0]
    return batch.actions[row, :, 0].tolist(), batch.valid[row].tolist(), float(batch.discount[row])


@pytest.mark.parametrize(
    ("commanders", "ending"), [("pppppp", "success"), ("pppppp", "failure"), ("pppppphh", "success")]
)
def test_a_plan_that_a_terminal_state_cut_short_is_drawn_whole(commanders, ending):
    # Steps 4 and 5 as sent to the motors, then as planned.
    assert _last_row(commanders, ending) == ([4, 5, 102, 103], [True] * 4, 0)


@pytest.mark.parametrize(
    ("commanders", "ending", "takeover"),
    [("pppppp", "limit", "failure"), ("pppppphh", "success", "bootstrap")],
)
def test_a_plan_that_goes_on_from_elsewhere_is_drawn_as_far_as_it_ran(commanders, ending, takeover):
    assert _last_row(commanders, ending, takeover) == ([4, 5, 0, 0], [True, True, False, False], 0.25)
