"""The transformers backend on real classes and processors of eight families, tiny and random."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from valueguide.errors import CheckpointError, ConfigError
from valueguide.progress.estimate import AskSettings, GvlEstimator, TokenProbability
from valueguide.progress.local import TransformersBackend
from valueguide.progress.prompt import Wording, build_prefix_request, build_request
from valueguide.progress.request import Clip, Reply, Request, RequestFailed, Sampling
from valueguide.testing.tiny_vlms import FAMILIES, build_tiny_vlm

CLIP = Clip(
    np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8), "push it", np.arange(4)
)
SHORT = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm("smolvlm", tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module", params=FAMILIES)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    return TransformersBackend(str(build_tiny_vlm(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def backend(folder: Path) -> TransformersBackend:
    return TransformersBackend(str(folder))


def _request(clip: Clip = CLIP, sampling: Sampling = SHORT, seed: int = 0) -> Request:
    return build_request(clip, seed, Wording("lines"), sampling=sampling)


def _logits(backend: TransformersBackend, request: Request) -> torch.Tensor:
    with torch.inference_mode():
        return backend._model(**backend.encode(request.prompt)).logits[0, -1].float()


def test_every_family_answers_and_sees_every_picture(each: TransformersBackend) -> None:
    first = each.ask(_request())
    again = each.ask(_request())
    assert (first.text, first.finish) == (again.text, "length")
    assert first.input_tokens and first.input_tokens > 50 and first.output_tokens == 6
    reference = _logits(each, _request())
    for frame in range(4):
        frames = CLIP.frames.copy()
        frames[frame] = 255 - frames[frame]
        order = _request().order
        changed = [part for part in _request().prompt.parts]
        place = 0 if frame == 0 else 1 + int(np.flatnonzero(order == frame)[0])
        spot = [i for i, part in enumerate(changed) if not isinstance(part, str)][place]
        changed[spot] = frames[frame]
        prompt = type(_request().prompt)(tuple(changed), 3, "lines", "")
        logits = _logits(each, Request(prompt, order, 0))
        assert not torch.allclose(reference, logits, atol=1e-5), f"picture {frame} makes no difference"


def test_every_family_tells_pictures_apart_by_their_place(each: TransformersBackend) -> None:
    request = _request()
    parts = list(request.prompt.parts)
    spots = [i for i, part in enumerate(parts) if not isinstance(part, str)]
    parts[spots[1]], parts[spots[2]] = parts[spots[2]], parts[spots[1]]
    swapped = Request(type(request.prompt)(tuple(parts), 3, "lines", ""), request.order, 0)
    assert not torch.allclose(_logits(each, request), _logits(each, swapped), atol=1e-6)


def test_the_token_probability_is_that_of_the_logits(each: TransformersBackend) -> None:
    request = build_prefix_request(CLIP, 2)
    reply = each.ask(request)
    tokens = each._processor.tokenizer.encode(" True", add_special_tokens=False)
    assert len(tokens) == 1 == reply.output_tokens, "the tiny vocabulary holds the word"
    expected = torch.log_softmax(_logits(each, request), dim=-1)[tokens[0]]
    assert reply.log_probability == pytest.approx(float(expected), abs=1e-4)


def test_several_tokens_add_up(backend: TransformersBackend) -> None:
    one = build_prefix_request(CLIP, 1)
    prompt = type(one.prompt)(one.prompt.parts, 1, "token", "", " True True")
    reply = backend.ask(Request(prompt, one.order, 0))
    inputs = backend.encode(one.prompt)
    total, ids = 0.0, backend._processor.tokenizer.encode(" True True", add_special_tokens=False)
    assert reply.output_tokens == len(ids) == 2
    for token in ids:
        with torch.inference_mode():
            logits = backend._model(**inputs).logits[0, -1].float()
        total += float(torch.log_softmax(logits, dim=-1)[token])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert reply.log_probability == pytest.approx(total, abs=1e-4)


def test_an_assistants_turn_begins_for_text_and_not_for_token(backend: TransformersBackend) -> None:
    assert backend._render(_request().prompt).endswith("<assistant>")
    assert backend._render(build_prefix_request(CLIP, 1).prompt).endswith("The answer is:")


def test_random_weights_are_malformed_not_progress(backend: TransformersBackend) -> None:
    settings = AskSettings(shuffles=2, reasks=1, wording=Wording("lines"), sampling=SHORT)
    found = GvlEstimator(backend, settings).estimate(CLIP)
    assert found.status == "malformed" and found.voc is None and np.all(np.isnan(found.values))
    assert found.parse_rate == 0.0 and len(found.shuffles[0].replies) == 2


def test_token_probability_over_a_clip(backend: TransformersBackend) -> None:
    found = TokenProbability(backend).estimate(CLIP)
    assert found.status == "ok" and np.all((found.values[1:] > 0) & (found.values[1:] < 1))


def test_an_answer_that_ends_itself_is_told_from_one_that_was_cut(folder: Path) -> None:
    own = TransformersBackend(str(folder))
    inputs = own.encode(_request().prompt)
    first = int(own._model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
    own._model.generation_config.eos_token_id = [first, 2]
    reply = own.ask(_request())
    assert (reply.finish, reply.output_tokens) == ("stop", 1)


def test_draws_depend_on_seed_and_attempt(backend: TransformersBackend) -> None:
    def ask(seed: int, attempt: int) -> Reply:
        request = _request(sampling=Sampling(temperature=1.0, max_tokens=6))
        return backend.ask(Request(request.prompt, request.order, seed, request.sampling, attempt))

    state = torch.random.get_rng_state()
    assert ask(0, 0).text == ask(0, 0).text
    assert len({ask(0, 0).text, ask(1, 0).text, ask(0, 1).text}) == 3
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("mark", ["<image>", "<end>", "<eos>"])
def test_an_instruction_with_a_mark_of_the_model_is_refused(backend: TransformersBackend, mark: str) -> None:
    clip = Clip(CLIP.frames, f"push {mark} it", CLIP.positions)
    with pytest.raises(RequestFailed, match="means something"):
        backend.ask(_request(clip))


def test_identity_is_the_content_not_the_place(
    folder: Path, backend: TransformersBackend, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    assert TransformersBackend(str(tmp_path / "moved")).identity() == backend.identity()
    other = TransformersBackend(str(build_tiny_vlm("smolvlm", tmp_path / "other", seed=1)))
    assert other.identity()["revision"] != backend.identity()["revision"]
    halved = TransformersBackend(str(folder), dtype="bfloat16")
    assert halved.identity() != backend.identity() and halved.ask(_request()).output_tokens == 6


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not loadable"):
        TransformersBackend(str(tmp_path))
    with pytest.raises(ConfigError, match="dtype"):
        TransformersBackend(str(folder), dtype="float31")
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cut"):
        TransformersBackend(str(tmp_path / "cut"))
