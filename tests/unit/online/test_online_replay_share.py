"""What several loaders of one replay draw together is what one alone draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from valueguide.bench.noise_replay import ReplaySize, noise_replay
from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.processes import Processes
from valueguide.online.replay import ReplayReader, from_state_id
from valueguide.online.replay_loader import Labelling, ReplayLoader

SPEC = CriticSpec(4, ("a", "b", "c"), 6, cameras={"front": (8, 10)})
NAMES = ("state", "actions", "valid", "reward", "discount", "mc_return", "cut", "index", "next_index",
         "instruction", "source", "store", "next_state")  # fmt: skip


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("share") / "replay"
    noise_replay(root, SPEC, NetworkConfig("small_film_cnn"), ["x", "y"], SPEC.cameras, ReplaySize(5, 4, 3))
    return root


def _loader(replay: Path, rows: slice | None = None) -> ReplayLoader:
    return ReplayLoader(ReplayReader(replay), Labelling(4), 12, seed=3, rows=rows)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shares_of_all_processes_are_the_batch(replay: Path, count: int) -> None:
    whole = _loader(replay)
    loaders = [_loader(replay, Processes(rank, count).share(12)) for rank in range(count)]
    for step in (0, 4):
        batch, parts = whole.batch(step), [loader.batch(step) for loader in loaders]
        assert {len(part.reward) for part in parts} == {12 // count}
        for name in NAMES:
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))
        for images in ("images", "next_images"):
            joined = np.concatenate([getattr(part, images)["front"] for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, images)["front"])


def test_each_row_is_what_its_ids_say(replay: Path) -> None:
    loader = _loader(replay)
    batch = loader.batch(2)
    for row in range(12):
        for ids, state, images in (
            (batch.index, batch.state, batch.images),
            (batch.next_index, batch.next_state, batch.next_images),
        ):
            assert ids is not None
            observation = loader.reader.observation(int(ids[row]))
            np.testing.assert_array_equal(state[row], observation.state)
            np.testing.assert_array_equal(images["front"][row], observation.images["front"])
        sequence, frame = from_state_id(int(batch.index[row]))
        segment = loader.reader.segments[sequence]
        ran = segment.action[frame : frame + 4]
        np.testing.assert_array_equal(batch.actions[row][: len(ran)], ran)
        assert loader.instructions[batch.instruction[row]] == segment.task
