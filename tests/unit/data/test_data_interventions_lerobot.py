"""The three intervention conventions with LeRobot's own recorders and consumers on the other side.

Its programs run unchanged; only what they talk to (robot, teleoperator, environment) is made up here.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_data_interventions import EXPECTED, letters, record

from valueguide.data.interventions import IS_INTERVENTION, PENALTY
from valueguide.data.interventions_export import export_interventions
from valueguide.data.reader import EpisodeDataset
from valueguide.online.segments import dataset_segments
from valueguide.types import SOURCES

lerobot_datasets = pytest.importorskip("lerobot.datasets")
pytestmark = pytest.mark.slow
HUMAN = SOURCES.index("human")
STATE_KEYS = ["observation.state", "observation.images.front"]


@pytest.fixture(autouse=True)
def private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def open_lerobot(root: Path) -> Any:
    return lerobot_datasets.LeRobotDataset("local/test", root=root)


def buffer_of(root: Path, **settings: Any) -> Any:
    """As `initialize_offline_replay_buffer` in lerobot/rl/learner.py makes it, which itself needs gRPC."""
    from lerobot.rl.buffer import ReplayBuffer

    return ReplayBuffer.from_lerobot_dataset(
        open_lerobot(root),
        device="cpu",
        state_keys=settings.pop("state_keys", STATE_KEYS),
        storage_device="cpu",
        optimize_memory=True,
        image_augmentation_function=lambda images: images,
        **settings,
    )


def runs(dataset: EpisodeDataset, i: int) -> list[tuple[str, str, int]]:
    return [(s.source, s.end, s.steps) for s in dataset_segments(dataset, i)]


# --- "intervention": DAggerStrategy ---


def dagger_features(vectors: dict[str, list[str]]) -> dict[str, Any]:
    """As rollout/context.py declares them for `DAggerStrategyConfig`."""
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": (len(names),), "names": names} for name, names in vectors.items()
    }
    return features | {"intervention": {"dtype": "bool", "shape": (1,), "names": None}}


def run_dagger(root: Path, record_autonomous: bool, phases: dict[int, str], stop: int) -> None:
    """Let LeRobot's DAgger strategy record; `phases`: keys pressed, by number of the observation."""
    import torch
    from lerobot.rollout.configs import DAggerStrategyConfig
    from lerobot.rollout.strategies.dagger import DAggerStrategy
    from lerobot.utils.action_interpolator import ActionInterpolator

    features = dagger_features({"observation.state": ["x", "grip"], "action": ["x", "grip"]})
    dataset = lerobot_datasets.LeRobotDataset.create("local/rollout_x", 100, features, root=root)
    config = DAggerStrategyConfig(record_autonomous=record_autonomous, smooth_handover=False, num_episodes=9)
    strategy = DAggerStrategy(config)
    seen = iter(range(1000))

    def observe() -> dict[str, float]:
        number = next(seen)
        if number in phases:
            strategy._events.request_transition(phases[number])
        if number == stop:
            strategy._events.stop_recording.set()
        return {"x": float(number), "grip": 0.0}

    def nothing(*_: Any) -> None:
        return None

    engine = SimpleNamespace(
        reset=nothing, resume=nothing, pause=nothing, notify_observation=nothing, ready=True,
        get_action=lambda frame: torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    config_of_run = SimpleNamespace(
        fps=100, interpolation_multiplier=1, dataset=SimpleNamespace(single_task="stack"), task="stack",
        play_sounds=False, duration=0, use_torch_compile=False, display_data=False,
    )  # fmt: skip
    context = SimpleNamespace(
        runtime=SimpleNamespace(cfg=config_of_run, shutdown_event=Event()),
        hardware=SimpleNamespace(
            robot_wrapper=SimpleNamespace(get_observation=observe, send_action=nothing),
            teleop=SimpleNamespace(get_action=lambda: {"x": 2.0, "grip": 1.0}, feedback_features={}),
        ),
        data=SimpleNamespace(dataset=dataset, dataset_features=features, ordered_action_keys=["x", "grip"]),
        policy=SimpleNamespace(inference=engine),
        processors=SimpleNamespace(
            robot_observation_processor=lambda observation: observation,
            teleop_action_processor=lambda pair: pair[0],
            robot_action_processor=lambda pair: pair[0],
        ),
    )
    strategy._engine, strategy._interpolator = engine, ActionInterpolator(multiplier=1)
    strategy._episode_duration_s = 1e9
    strategy.run(context)
    dataset.finalize()


def test_what_the_dagger_strategy_records_is_read(tmp_path: Path) -> None:
    keys = {2: "pause_resume", 5: "correction", 8: "correction", 10: "pause_resume"}
    run_dagger(tmp_path / "all", True, keys, 13)
    dataset = EpisodeDataset.open(tmp_path / "all")
    assert dataset.interventions == "dagger"
    assert letters(dataset) == ["ppphhhppp"]  # The key takes effect a tick later; pauses are not recorded.
    np.testing.assert_array_equal(dataset.action[:, 0], np.where(dataset.source == HUMAN, 2, 1))
    assert runs(dataset, 0) == [
        ("policy", "takeover", 3), ("human", "handback", 3), ("policy", "truncated", 2),
    ]  # fmt: skip
    run_dagger(tmp_path / "corrections", False, keys | {12: "pause_resume", 13: "correction"}, 16)
    corrections = EpisodeDataset.open(tmp_path / "corrections")
    assert letters(corrections) == ["hhh", "hhh"]
    assert [s.store for s in dataset_segments(corrections, 0, store="correction")] == ["correction"]


def test_a_dagger_export_is_read_resumed_and_merged_by_lerobot(tmp_path: Path) -> None:
    from lerobot.datasets.aggregate import aggregate_datasets

    dataset, out = record(tmp_path / "set"), tmp_path / "out"
    export_interventions(dataset, out, "dagger")
    theirs = open_lerobot(out)
    flags = np.array([bool(theirs[i]["intervention"]) for i in range(len(theirs))])
    np.testing.assert_array_equal(flags, [letter == "h" for letter in "".join(EXPECTED["dagger"])])
    np.testing.assert_array_equal(theirs[3]["action"].numpy(), dataset.action[4])  # Frame 2 was a hold.
    assert theirs[3]["task"] == dataset.instructions[dataset.instruction[4]]
    assert theirs.meta.stats["intervention"]["mean"] == pytest.approx(flags.mean())
    pixels = theirs[3]["observation.images.front"].permute(1, 2, 0).numpy() * 255
    np.testing.assert_array_equal(np.round(pixels).astype(np.uint8), dataset.image(4, "front"))
    window = lerobot_datasets.LeRobotDataset("local/test", root=out, delta_timestamps={"action": [0.0, 0.1]})
    np.testing.assert_array_equal(window[2]["action"].numpy(), dataset.action[[3, 4]])

    # The frame that DAggerStrategy adds fits, and so does merging with what it has recorded.
    features = {n: f for n, f in theirs.meta.info.features.items() if n.split(".")[0] in
                ("observation", "action", "intervention")}  # fmt: skip
    frame = {
        "observation.images.front": dataset.image(0, "front"),
        "observation.images.wrist": dataset.image(0, "wrist"),
        "observation.state": dataset.state[0],
        "observation.environment_state": dataset.environment_state[0],
        "action": dataset.action[0],
        "task": "stack",
        "intervention": np.array([True], dtype=bool),
    }
    created = lerobot_datasets.LeRobotDataset.create(
        "local/rollout_new", 10, features, root=tmp_path / "new", robot_type="test_arm", use_videos=False
    )
    for made in (created, lerobot_datasets.LeRobotDataset.resume("local/test", root=out)):
        made.add_frame(dict(frame))
        made.add_frame({**frame, "intervention": np.array([False], dtype=bool)})
        made.save_episode()
        made.finalize()
    assert letters(EpisodeDataset.open(out)) == [*EXPECTED["dagger"], "hp"]
    aggregate_datasets(["local/a", "local/b"], "local/c", [out, tmp_path / "new"], tmp_path / "merged")
    assert letters(EpisodeDataset.open(tmp_path / "merged")) == [*EXPECTED["dagger"], "hp", "hp"]


# --- "complementary_info.is_intervention": the HIL-SERL replay buffer ---


def test_a_hil_serl_export_survives_lerobots_replay_buffer(tmp_path: Path) -> None:
    dataset, out = record(tmp_path / "set"), tmp_path / "out"
    export_interventions(dataset, out, "hil_serl")
    buffer = buffer_of(out, capacity=64)
    ours = EpisodeDataset.open(out)
    assert letters(ours) == EXPECTED["hil_serl"]
    count = ours.frames
    assert len(buffer) == count
    stored = buffer.complementary_info
    assert sorted(stored) == ["discrete_penalty", "is_intervention"]
    np.testing.assert_array_equal(stored["is_intervention"][:count].numpy(), ours.source == HUMAN)
    np.testing.assert_array_equal(stored["discrete_penalty"][:count].numpy(), 0)
    np.testing.assert_array_equal(buffer.dones[:count].numpy(), ours.terminated)
    np.testing.assert_array_equal(buffer.rewards[:count].numpy(), ours.reward)
    np.testing.assert_array_equal(buffer.actions[:count].numpy(), ours.action)
    buffer.to_lerobot_dataset("local/checkpoint", fps=10, root=tmp_path / "checkpoint")
    again = EpisodeDataset.open(tmp_path / "checkpoint")
    assert again.interventions == "hil_serl"
    np.testing.assert_array_equal(again.source, ours.source)
    np.testing.assert_array_equal(again.action, ours.action)
    # LeRobot's buffer forgets truncation (its own note: not supported yet): it joins what follows.
    assert letters(again) == ["pphhpp", "ph", "ppphh", "hh"]
    assert again.episode_terminated.tolist() == [True, True, True, False]
    assert again.episode_success.tolist() == [True, False, True, False]
    for name in (IS_INTERVENTION, PENALTY, "next.reward", "next.done"):
        assert {**again.features[name], "names": None} == ours.features[name]
    assert runs(again, 0) == runs(ours, 0)


def test_interventions_of_a_hil_serl_export_go_to_the_offline_buffer_as_in_the_learner(
    tmp_path: Path,
) -> None:
    from lerobot.rl.buffer import ReplayBuffer

    export_interventions(record(tmp_path / "set"), tmp_path / "out", "hil_serl")
    ours = EpisodeDataset.open(tmp_path / "out")
    transitions = ReplayBuffer._lerobotdataset_to_transitions(open_lerobot(tmp_path / "out"), STATE_KEYS)
    # The condition of `process_transitions` in lerobot/rl/learner.py.
    chosen = [bool(t.get("complementary_info", {}).get("is_intervention")) for t in transitions]
    np.testing.assert_array_equal(chosen, ours.source == HUMAN)


def fill_online(buffer: Any, sources: str, state_keys: list[str]) -> None:
    """As rl/actor.py builds transitions and rl/learner.py adds them; "p" policy, "h" human."""
    import torch
    from lerobot.utils.transition import Transition, move_transition_to_device

    for t, letter in enumerate(sources):
        state = {key: torch.full((1, 2), float(t)) for key in state_keys}
        last = t == len(sources) - 1
        transition = Transition(
            state=state,
            action=torch.full((1, 2), float(t)),
            reward=float(last),
            next_state={key: torch.full((1, 2), t + 1.0) for key in state_keys},
            done=last,
            truncated=False,
            complementary_info={"discrete_penalty": torch.tensor([0.0]), "is_intervention": letter == "h"},
        )
        buffer.add(**move_transition_to_device(transition, "cpu"))


def test_what_the_hil_serl_buffer_stores_is_read(tmp_path: Path) -> None:
    from lerobot.rl.buffer import ReplayBuffer

    buffer = ReplayBuffer(
        16, "cpu", ["observation.state"], image_augmentation_function=lambda x: x, optimize_memory=True
    )
    fill_online(buffer, "pphhp", ["observation.state"])
    fill_online(buffer, "hhp", ["observation.state"])
    buffer.to_lerobot_dataset("local/online", fps=10, root=tmp_path / "online")
    dataset = EpisodeDataset.open(tmp_path / "online")
    assert dataset.interventions == "hil_serl"
    assert letters(dataset) == ["pphhp", "hhp"]
    assert dataset.episode_success.all()
    assert [name for name, _, _ in runs(dataset, 0)] == ["policy", "human", "policy"]


# --- no mark at all: gym_manipulator, mode record ---


def record_with_gym_manipulator(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's own recording loop on an environment whose person drives and rests in turn."""
    from lerobot.rl import gym_manipulator

    steps = iter(range(1000))

    def step(action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        t = next(steps)
        info = {"is_intervention": t % 3 != 2, "teleop_action": np.array([t, 0.0, 0.0, 1.0], np.float32)}
        return {"agent_pos": np.full(3, t + 1.0, np.float32)}, float(t == 3), t == 3, t == 6, info

    env = SimpleNamespace(reset=lambda: ({"agent_pos": np.zeros(3, np.float32)}, {}), step=step)
    settings = SimpleNamespace(
        mode="record",
        device="cpu",
        env=SimpleNamespace(
            fps=100,
            name="gym_hil",
            processor=SimpleNamespace(reset=None, gripper=SimpleNamespace(use_gripper=True)),
        ),
        dataset=SimpleNamespace(
            repo_id="local/demos", root=root, num_episodes_to_record=2, task="stack", push_to_hub=False
        ),
    )
    made = []
    create = gym_manipulator.LeRobotDataset.create
    monkeypatch.setattr(
        gym_manipulator.LeRobotDataset, "create", lambda *a, **k: made.append(create(*a, **k)) or made[0]
    )
    processors = gym_manipulator.make_processors(env, None, settings.env)
    gym_manipulator.control_loop(env, *processors, None, settings)
    made[0].finalize()  # The loop leaves this to pushing.


def test_what_gym_manipulator_records_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_with_gym_manipulator(tmp_path / "demos", monkeypatch)
    dataset = EpisodeDataset.open(tmp_path / "demos")
    assert dataset.interventions == "gym_record"
    assert letters(dataset) == ["hhhh", "hhh"]
    assert dataset.episode_success.tolist() == [True, False]
    assert runs(dataset, 0) == [("human", "success", 4)]


def test_a_gym_record_export_feeds_lerobots_offline_buffer(tmp_path: Path) -> None:
    from lerobot.rl.buffer import ReplayBuffer, concatenate_batch_transitions

    dataset, out = record(tmp_path / "set"), tmp_path / "out"
    facts = export_interventions(dataset, out, "gym_record")
    offline = buffer_of(out, capacity=32, state_keys=["observation.state"])
    driven = np.isin(dataset.source, (HUMAN, SOURCES.index("expert")))
    count = int(driven.sum())
    assert len(offline) == count == facts["frames"]
    np.testing.assert_array_equal(offline.actions[:count].numpy(), dataset.action[driven])
    np.testing.assert_array_equal(offline.dones[:count].numpy().nonzero()[0], [1, 2, 4, 6])
    # Mixed with the actor's transitions as `OnlineOfflineMixer` does, all of one length for the penalty.
    online = ReplayBuffer(16, "cpu", ["observation.state"], image_augmentation_function=lambda x: x)
    fill_online(online, "pphhp", ["observation.state"])
    mixed = concatenate_batch_transitions(
        {**online.sample(3), "state": {}, "next_state": {}},
        {**offline.sample(3), "state": {}, "next_state": {}},
    )
    assert len(mixed["complementary_info"]["discrete_penalty"]) == len(mixed["reward"]) == 6
    offline.to_lerobot_dataset("local/offline", fps=10, root=tmp_path / "checkpoint")
    again = EpisodeDataset.open(tmp_path / "checkpoint")
    assert again.interventions == "gym_record"
    assert letters(again) == letters(EpisodeDataset.open(out)) == EXPECTED["gym_record"]
    assert again.episode_success.tolist() == [False, False, True, False]
    assert PENALTY in again.features


def test_a_recording_with_video_is_converted(tmp_path: Path) -> None:
    vectors = {"observation.state": ["x"], "action": ["x"]}
    camera = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features = {**dagger_features(vectors), "observation.images.front": camera}
    made = lerobot_datasets.LeRobotDataset.create("local/v", 10, features, root=tmp_path / "video")
    for t, human in enumerate((False, True, True)):
        frame = {"observation.state": np.array([t], np.float32), "action": np.array([t], np.float32)}
        picture = np.full((64, 64, 3), 60 * t, np.uint8)
        mark = np.array([human])
        made.add_frame({**frame, "observation.images.front": picture, "intervention": mark, "task": "stack"})
    made.save_episode()
    made.finalize()
    dataset = EpisodeDataset.open(tmp_path / "video")
    assert letters(dataset) == ["phh"]
    export_interventions(dataset, tmp_path / "out", "hil_serl")
    again = EpisodeDataset.open(tmp_path / "out")
    assert letters(again) == ["phh"] and again.interventions == "hil_serl"
    for row in range(3):
        np.testing.assert_array_equal(again.image(row, "front"), dataset.image(row, "front"))
    assert open_lerobot(tmp_path / "out")[2]["observation.images.front"].shape == (3, 64, 64)
