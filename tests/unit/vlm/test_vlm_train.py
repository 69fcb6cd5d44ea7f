"""The small vision-language model: its data, its training, its folder, its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from valueguide.data.reader import EpisodeDataset
from valueguide.errors import CheckpointError, ConfigError, DataError
from valueguide.progress.local import TransformersBackend
from valueguide.progress.parse import parse_answer, write_answer
from valueguide.progress.prompt import Wording, build_request
from valueguide.progress.request import Answer, Clip
from valueguide.testing.brightness_episodes import LENGTH, TASKS, brightness_dataset
from valueguide.vlm.small_vlm import VlmSize, number_tokens, verify_small_vlm
from valueguide.vlm.train_answers import around, mentioned
from valueguide.vlm.train_data import EpisodePictures, Questions, progress_values, split, taught_episodes
from valueguide.vlm.train_phase import VlmTrainSettings
from valueguide.vlm.train_run import VlmRun

SMALL = VlmSize(hidden=64, layers=2, heads=4, intermediate=96, scale=4)
SETTINGS = VlmTrainSettings(sight_steps=4, read_steps=2, steps=6, sight_batch=2, batch=3, frames=(3, 5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return brightness_dataset(tmp_path_factory.mktemp("taught") / "data")


def _run(dataset: EpisodeDataset, folder: Path, **changes: Any) -> VlmRun:
    settings = VlmTrainSettings(**{**vars(SETTINGS), **changes})
    return VlmRun([dataset], "front", settings, folder / "run", folder / "model", size=SMALL)


@pytest.fixture(scope="module")
def trained(dataset: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    _run(dataset, folder).train(every=3)
    return folder / "model"


# -- data --------------------------------------------------------------------------------------------


def test_a_failed_episode_ends_low_and_a_success_at_one() -> None:
    """By hand: from 0.2, 0.6 is half of what was left; below the start is 0."""
    assert progress_values({"progress": [0.2, 0.6, 1.0]}, 3, "").tolist() == [0, 0.5, 1]
    assert progress_values({"progress": [0.2, 0.6, 0.1]}, 3, "").tolist() == [0, 0.5, 0]


@pytest.mark.parametrize(
    "facts, words",
    [
        ({}, "found none"),
        ({"progress": 0.4}, "found none"),
        ({"progress": [0.1, 0.2]}, "found 2 values"),
        ({"progress": [0.1, 1.2, 0.3]}, "from 0 to 1"),
        ({"progress": [0.1, float("nan"), 0.3]}, "from 0 to 1"),
        ({"progress": [1.0, 1.0, 1.0]}, "not done at the start"),
    ],
)
def test_episodes_without_true_progress_teach_nothing(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        progress_values(facts, 3, "here")


def test_labels_of_a_dataset_follow_its_pictures(dataset: EpisodeDataset) -> None:
    pictures = EpisodePictures([dataset, dataset], "front")
    episodes = taught_episodes([dataset, dataset], pictures)
    assert len(episodes) == 24 and len(pictures) == 2 * 12 * (LENGTH + 1) + 1
    for episode in (episodes[0], episodes[1], episodes[-1]):
        levels = pictures.take(episode.rows)[:, 0, 0, 0] / 250
        assert np.allclose((levels - levels[0]).clip(0) / (1 - levels[0]), episode.values, atol=0.01)
    assert episodes[0].values[-1] == 1 and episodes[0].success
    assert episodes[1].values[-1] == 0 and episodes[1].values.max() > 0.4 and not episodes[1].success
    assert not pictures.take(np.array([pictures.blank])).any()


def test_held_out_episodes_teach_nothing(dataset: EpisodeDataset) -> None:
    pictures = EpisodePictures([dataset], "front")
    taught, held = split(taught_episodes([dataset], pictures))
    assert len(taught) == 11 and len(held) == 1
    questions = Questions(taught, [*taught, *held], pictures, (3, 5))
    rng = np.random.default_rng(0)
    shown = {int(row) for _ in range(30) for q in questions.batch(rng, 4, "lines", 5) for row in q.rows}
    assert not shown & set(held[0].rows.tolist()) and pictures.blank in shown


def test_questions_say_the_truth_about_every_kind_of_clip(dataset: EpisodeDataset) -> None:
    pictures = EpisodePictures([dataset], "front")
    episodes = taught_episodes([dataset], pictures)
    own = {int(row): e for e in episodes for row in e.rows}
    value = {int(row): float(v) for e in episodes for row, v in zip(e.rows, e.values, strict=True)}
    questions = Questions(episodes, episodes, pictures, (3, 5))
    rng, kinds = np.random.default_rng(1), set()
    for question in [q for _ in range(60) for q in questions.batch(rng, 4, "lines", 5)]:
        assert len(question.rows) == question.prompt.asked + 1 == len(question.values) + 1
        shown = pictures.take(question.rows)
        assert all(np.array_equal(a, b) for a, b in zip(question.prompt.pictures, shown, strict=True))
        if question.rows[0] == pictures.blank:
            kinds.add("blank")
            assert not question.values.any()
        elif own[int(question.rows[0])].instruction not in str(question.prompt.parts[0]):
            kinds.add("wrong instruction")
            assert not question.values.any()
        else:
            kinds.add("one picture" if len(set(question.rows[1:].tolist())) == 1 else "real")
            assert question.values.tolist() == [value[int(row)] for row in question.rows[1:]]
    assert kinds == {"blank", "wrong instruction", "one picture", "real"}


def test_related_tasks_are_not_the_wrong_one(dataset: EpisodeDataset) -> None:
    pictures = EpisodePictures([dataset], "front")
    episodes = taught_episodes([dataset], pictures)
    questions = Questions(episodes[:1], episodes, pictures, (3, 3), ["push_it", "pull_it"])
    rng = np.random.default_rng(0)
    texts = {str(q.prompt.parts[0]) for _ in range(40) for q in questions.batch(rng, 4, "lines", 3)}
    assert any("lift it" in text for text in texts) and not any("pull it" in text for text in texts)
    with pytest.raises(ConfigError, match="unrelated"):
        Questions(episodes[:1], episodes, pictures, (3, 3), list(TASKS))


@pytest.mark.parametrize("instruction", ["lift it", "Den Löffel aufs Tuch", "task", "is"])
def test_the_instruction_is_found_among_the_tokens(trained: Path, instruction: str) -> None:
    backend = TransformersBackend(str(trained))
    tokenizer = backend._processor.tokenizer
    clip = Clip(np.zeros((3, 8, 8, 3), np.uint8), instruction, np.arange(3))
    prompt = build_request(clip, 0, Wording("lines")).prompt
    ids = backend.encode(prompt)["input_ids"][0]
    found = mentioned(tokenizer, ids, str(prompt.parts[0]), instruction)
    assert tokenizer.decode(ids[found]).strip(" .") == instruction
    assert tokenizer.decode(ids[: int(found.nonzero()[0])]).rstrip().endswith("The task is:")
    with pytest.raises(ValueError, match="found none"):
        mentioned(tokenizer, ids[5:], str(prompt.parts[0]), instruction)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.sampled_from(["lines", "json"]))
def test_what_is_written_is_what_is_read(values: list[int], answer: Answer) -> None:
    assert parse_answer(write_answer(values, answer), len(values), answer).tolist() == values


def test_only_what_is_done_is_taught_as_100() -> None:
    found = around(torch.tensor([0.0, 0.5, 0.999, 1.0]))
    assert torch.allclose(found.sum(-1), torch.ones(4))
    assert found.argmax(-1).tolist() == [0, 50, 99, 100]
    assert found[2, 100] == 0 and found[3, 100] == 1


# -- training ----------------------------------------------------------------------------------------


def test_training_lowers_the_loss(dataset: EpisodeDataset, tmp_path: Path) -> None:
    run = _run(dataset, tmp_path, sight_steps=1, read_steps=0, steps=40, rate=5e-3)
    phase = run._answering({}, lambda text: None)
    held = Questions(run.held, run.episodes, run.pictures, (3, 5))
    before = phase.held_out(held, 2)
    while phase.step < phase.steps:
        phase.update()
    after = phase.held_out(held, 2)
    assert after["form"] < 0.6 * before["form"] and after["value"] < 0.9 * before["value"]


def test_reading_comes_before_answering(dataset: EpisodeDataset, tmp_path: Path) -> None:
    """Until `read_steps` only the read-out learns: the layers above it, which answer, stay as they are."""
    phase = _run(dataset, tmp_path)._answering({}, lambda text: None)
    above = phase._model.model.text_model.layers[-1].mlp.down_proj.weight
    below = phase._model.model.text_model.layers[0].mlp.down_proj.weight
    first, other = above.clone(), below.clone()
    assert [sorted(phase.update()) for _ in range(2)] == [["hint", "look"]] * 2
    assert torch.equal(above, first) and not torch.equal(below, other)
    assert sorted(phase.update()) == ["form", "hint", "look", "value"] and not torch.equal(above, first)


def test_only_the_answer_is_taught(dataset: EpisodeDataset, tmp_path: Path) -> None:
    """Nothing of the prompt is predicted: tokens that only stand there get no gradient from the output."""
    phase = _run(dataset, tmp_path)._answering({}, lambda text: None)
    rng = np.random.default_rng(0)
    (question,) = phase._questions.batch(rng, 1, "lines", 5)
    answer = phase._answer_tokens(question)
    text = phase._tokenizer.decode(answer[:-1])
    assert text == write_answer(question.percentages, "lines") and answer[-1] == phase._tokenizer.eos_token_id
    numbers = number_tokens(phase._tokenizer)
    assert [numbers.index(t) for t in answer.tolist() if t in numbers][1::2] == question.percentages


def test_earlier_percentages_are_mostly_no_help(dataset: EpisodeDataset, tmp_path: Path) -> None:
    """Only percentages are drawn anew, and only in what is read; what is taught stays."""
    phase = _run(dataset, tmp_path)._answering({}, lambda text: None)
    batch = phase._questions.batch(np.random.default_rng(0), 16, "json", 5)
    answers = torch.stack([phase._answer_tokens(question) for question in batch])
    kept = answers.clone()
    torch.manual_seed(0)
    read = phase._forget(answers)
    assert torch.equal(answers, kept) and torch.equal(
        read[~phase._is_value(answers)], answers[~phase._is_value(answers)]
    )
    assert 8 <= int((read != answers).any(dim=1).sum()) < 16


def test_where_to_look_is_the_number_the_instruction_the_anchor_and_the_picture(
    dataset: EpisodeDataset, tmp_path: Path
) -> None:
    """Attention made by hand, from the tokens' text, costs nothing; any other does."""
    phase = _run(dataset, tmp_path)._answering({}, lambda text: None)
    (question,) = phase._questions.batch(np.random.default_rng(5), 1, "lines", 5)
    prompt, mention = phase._prompt_tokens(question)
    answer = phase._answer_tokens(question)
    ids = torch.cat([prompt, answer])
    mentions = torch.cat([mention, torch.zeros(len(answer), dtype=torch.bool)])
    words = phase._tokenizer.convert_ids_to_tokens(ids)
    begin = len(ids) - len(answer)
    tokens = SMALL.image_tokens
    tags, tasks, anchors, finds = torch.zeros(4, len(ids), len(ids))
    pictures = [i for i, word in enumerate(words) if word == "<image>"]
    for number in range(1, question.prompt.asked + 1):
        shown = pictures[tokens * number : tokens * number + tokens]
        header = max(i for i in range(shown[0]) if words[i] == f"Ġ{number}")
        again = next(i for i in range(begin, len(ids)) if words[i : i + 2] == [f"Ġ{number}", ":"])
        tags[shown[-1], header] = tags[again + 1, again] = 1
        tasks[shown[-1], mentions] = 1 / int(mentions.sum())
        anchors[shown[-1], pictures[:tokens]] = 1 / tokens
        finds[again + 1, shown] = 1 / tokens
    places = torch.tensor(pictures).view(1, -1, tokens)[:, 1:]

    def losses(*heads: torch.Tensor) -> list[float]:
        """Of each thing that is looked at: number, instruction, anchor; number, picture."""
        layers = [torch.stack(heads[:3])[None], heads[3][None, None]]
        reading = phase._reading_look(ids[None], mentions[None], places, layers)
        writing = phase._writing_look(ids[None], places, len(answer), layers)
        return torch.cat([reading, writing]).mean(dim=(1, 2)).tolist()

    assert phase._hinted == 1 and losses(tags, tasks, anchors, finds) == pytest.approx([0] * 5, abs=1e-5)
    for wrong, costs in enumerate([(0, 3), (1,), (2,), (4,)]):
        heads = [tags, tasks, anchors, finds]
        heads[wrong] = heads[wrong].roll(10, dims=1)
        found = losses(*heads)
        assert [found[i] > 1 for i in range(5)] == [i in costs for i in range(5)]


def test_what_is_trained_is_what_is_asked(dataset: EpisodeDataset, tmp_path: Path) -> None:
    """Stored tower outputs and cached prompt tokens give the logits of the whole model on the real prompt."""
    phase = _run(dataset, tmp_path)._answering({}, lambda text: None)
    for question in phase._questions.batch(np.random.default_rng(3), 3, "json", 5):
        inputs = phase._encode(question.prompt)
        assert torch.equal(inputs["input_ids"][0], phase._prompt_tokens(question)[0])
        seen = torch.from_numpy(phase._features[question.rows].astype(np.float32))
        with torch.inference_mode():
            wanted = phase._model(**inputs).logits[0, -1]
            stored = phase._model.model.connector(seen)
            found = phase._model(input_ids=inputs["input_ids"], image_hidden_states=stored).logits[0, -1]
        assert torch.allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize("cut", [2, 3, 1])
def test_a_resumed_run_equals_an_uninterrupted_one(
    dataset: EpisodeDataset, trained: Path, tmp_path: Path, cut: int
) -> None:
    """Cut off while seeing (after 2 of 4 updates), answering (after 3 of 6) and reading (1 of 2)."""

    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith(f"sight {cut}" if cut == 2 else f"step {cut}"):
            raise Stop

    with pytest.raises(Stop):
        _run(dataset, tmp_path).train(every=cut, say=stop)
    _run(dataset, tmp_path).train(every=3)
    found, wanted = (f / "model.safetensors" for f in (tmp_path / "model", trained))
    assert found.read_bytes() == wanted.read_bytes()


def test_a_run_with_other_settings_or_a_damaged_state_is_refused(
    dataset: EpisodeDataset, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.parent / "run", tmp_path / "run")
    with pytest.raises(CheckpointError, match="other data or settings"):
        _run(dataset, tmp_path, batch=4).train(every=3)
    assert _run(dataset, tmp_path, steps=7)._saved()["step"] == 6  # more updates are welcome
    state = tmp_path / "run" / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\0")
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="hash"):
        _run(dataset, tmp_path).train(every=3)


# -- the folder --------------------------------------------------------------------------------------


def test_the_folder_loads_as_any_model_and_says_what_it_is(trained: Path) -> None:
    import transformers as tf

    model = tf.AutoModelForImageTextToText.from_pretrained(trained)
    processor = tf.AutoProcessor.from_pretrained(trained)
    assert type(model) is tf.SmolVLMForConditionalGeneration and model.dtype == torch.float32
    assert type(processor) is tf.SmolVLMProcessor
    manifest = verify_small_vlm(trained)
    assert "simulat" in manifest["facts"]["what"] and manifest["facts"]["episodes"]["held_out"] == 1
    weights = (trained / "model.safetensors").stat().st_size
    assert weights < 2.1 * manifest["facts"]["parameters"] + 50_000  # 16 bits


def test_a_damaged_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer_config"):
        verify_small_vlm(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match="format"):
        verify_small_vlm(tmp_path / "model")
    with pytest.raises(CheckpointError, match="found none"):
        verify_small_vlm(tmp_path / "absent")


def test_every_picture_counts(trained: Path) -> None:
    backend = TransformersBackend(str(trained))
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    request = build_request(Clip(frames, "push it", np.arange(4)), 0, Wording("lines"))

    def logits(parts: list[Any]) -> torch.Tensor:
        prompt = type(request.prompt)(tuple(parts), 3, "lines", "")
        with torch.inference_mode():
            return backend._model(**backend.encode(prompt)).logits[0, -1]

    reference = logits(list(request.prompt.parts))
    for i, part in enumerate(request.prompt.parts):
        if not isinstance(part, str):
            parts = list(request.prompt.parts)
            parts[i] = 255 - part
            assert not torch.allclose(reference, logits(parts), atol=1e-6)
