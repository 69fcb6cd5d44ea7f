"""`progress agree`, `progress weights` and `train critic --progress-reward` on a scored dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.progress.columns import FILE, progress_columns, write_progress
from valueguide.progress.gains import above_task_mean
from valueguide.types import Episode, Observation, Step

EPISODES, LENGTH = 12, 12
TASKS = ("push it", "pull it")
ASKED = [0, 2, 4, 6, 8, 10, 12]


def _truth(number: int) -> list[float]:
    """True progress of episode `number`: successes rise to 1, each third episode drops what it held."""
    rise = np.linspace(0.0, 1.0, LENGTH + 1) ** (1 + number / 8)
    return (rise if number % 3 else np.where(np.arange(LENGTH + 1) < 7, rise, 0.1)).tolist()


def _observation(number: int, step: int) -> Observation:
    seen = np.array([_truth(number)[step], np.sin(number + step)], np.float32)
    return Observation({}, seen, TASKS[number % 2], step, np.array([seen.sum(), 1.0], np.float32))


def _episode(number: int) -> Episode:
    won = bool(number % 3)
    steps = [
        Step(
            _observation(number, i),
            np.array([0.1 * i, -0.1], np.float32),
            terminated=i == LENGTH - 1 and won,
            truncated=i == LENGTH - 1 and not won,
            success=i == LENGTH - 1 and won,
        )
        for i in range(LENGTH)
    ]
    facts = {"task_name": TASKS[number % 2], "progress": _truth(number)}
    return Episode(steps, _observation(number, LENGTH), TASKS[number % 2], facts)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right, but shows only 90 % of it; episode 5 was not answered."""
    root = tmp_path_factory.mktemp("scored") / "data"
    with EpisodeWriter(root, DatasetSpec.from_episode(_episode(0), fps=10)) as writer:
        for number in range(EPISODES):
            writer.save(_episode(number))
    dataset = EpisodeDataset.open(root)
    rows = [
        {
            "episode": number,
            "camera": "front",
            "variant": "real",
            "status": "malformed" if number == 5 else "ok",
            "frames": ASKED,
            "progress": [None, *(0.9 * _truth(number)[frame] for frame in ASKED[1:])],
        }
        for number in range(EPISODES)
    ]
    write_progress(root / FILE, dataset, progress_columns(dataset, rows, "front"), {})
    return root


@pytest.fixture(scope="module")
def critic(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("critic") / "critic"
    options = ["--steps", 4, "--batch-size", 16, "--members", 2, "--device", "cpu", "--progress-reward", 10]
    assert _main("train", "critic", "--dataset", scored, *options, "--out", out) == 0
    return out


def _main(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_curves_that_agree_and_a_critic_that_has_learned_nothing(
    scored: Path, critic: Path, tmp_path: Path
) -> None:
    out, told = tmp_path / "page" / "agreement.html", tmp_path / "agreement.json"
    options = ["--dataset", scored, "--critic", critic, "--device", "cpu", "--show", 3]
    assert _main("progress", "agree", *options, "--out", out, "--json", told) == 0
    found = json.loads(told.read_text())
    assert found["settings"]["episodes"] == EPISODES - 1
    assert found["settings"]["curves"] == ["progress", "true", "critic", "clock"]
    same = found["pairs"]["progress ~ true"]
    assert same["within"]["value"] == same["pooled"]["value"] == pytest.approx(1.0)
    assert same["starc"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert set(same["within"]["tasks"]) == set(TASKS)
    clock = found["pairs"]["progress ~ clock"]["within"]
    assert clock["value"] < 1 and clock["ci95"][0] < clock["value"] < clock["ci95"][1]
    # The chunk of 4 that was executed is whole up to frame 8: of the frames asked about, four.
    assert found["pairs"]["progress ~ critic"]["within"]["episodes"] == EPISODES - 1
    page = out.read_text()
    assert page.count("<svg") == 3 and "push it, episode" in page and "http" not in page


def test_lerobot_reads_the_weights_file(scored: Path, tmp_path: Path) -> None:
    """Its factory makes RA-BC weights of the same gains; ours stand beside them."""
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from lerobot.utils.sample_weighting import SampleWeightingConfig, make_sample_weighter

    out, told = tmp_path / "weights.parquet", tmp_path / "weights.json"
    assert _main("progress", "weights", "--dataset", scored, "--chunk", 3, "--out", out, "--json", told) == 0
    table = pq.read_table(out).to_pandas()
    policy = SimpleNamespace(config=SimpleNamespace(chunk_size=3))
    config = SampleWeightingConfig(progress_path=str(out))
    weighter = make_sample_weighter(config, policy, torch.device("cpu"))
    theirs = [weighter._compute_delta(i) for i in range(len(table))]
    assert np.allclose(theirs, table["gain"], atol=1e-6, equal_nan=True) and table["gain"].notna().sum() > 50
    weights, _ = weighter.compute_batch_weights({"index": torch.arange(len(table))})
    assert torch.isfinite(weights).all() and weights.sum() == pytest.approx(len(table), rel=1e-4)
    # exp(clip(z, -2, 2)) of the standardised advantage; frames without a gain count 1.
    known = table["gain"].notna().to_numpy()
    task = np.repeat(np.arange(EPISODES) % 2, LENGTH)
    advantage = above_task_mean(table["gain"].to_numpy(np.float32), task)[known]
    assert np.allclose(table["weight"][known], np.exp(np.clip(advantage / advantage.std(), -2, 2)), rtol=1e-4)
    assert (table["weight"][~known] == 1).all()
    facts = json.loads(told.read_text())
    weight = table["weight"].to_numpy(float)
    assert facts["effective_sample_size"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert facts["without_gain"] == int((~known).sum())


def test_a_critic_says_that_its_rewards_were_shaped(scored: Path, critic: Path, tmp_path: Path) -> None:
    """Episode 5 has no progress, and the final observations of four time limits are not in the file."""
    manifest = json.loads((critic / "manifest.json").read_text())
    assert manifest["progress_reward"] == {"scale": 10.0, "steps": 144, "unshaped": LENGTH + 4}
    plain = ["--dataset", scored, "--steps", 1, "--device", "cpu", "--out", tmp_path / "critic"]
    assert _main("train", "critic", *plain, "--init", critic) == 2


@pytest.mark.parametrize(
    "options, words",
    [
        (("--progress-reward", "-1"), "0 or more"),
        (("--progress-reward", "nan"), "0 or more"),
        (("--progress-reward", "1", "--algo", "distill", "--teacher", "x"), "iql or calql or aloe"),
    ],
)
def test_shaping_that_cannot_be_is_said_in_one_line(
    options: tuple[str, ...], words: str, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "critic", "--dataset", scored, "--device", "cpu", "--out", tmp_path / "c")
    assert _main(*command, *options) == 2
    assert words in capsys.readouterr().err


def test_without_scores_the_next_step_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    with EpisodeWriter(root, DatasetSpec.from_episode(_episode(0), fps=10)) as writer:
        writer.save(_episode(0))
    assert _main("progress", "agree", "--dataset", root, "--out", tmp_path / "a.html") == 2
    assert "valueguide progress score" in capsys.readouterr().err
