"""`valueguide train backbone` from rendering to the saved CLIP folder, with a handful of pictures."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from sim.wordings import HELD_OUT, TRAIN, corpus
from valueguide.cli import train_backbone as command
from valueguide.cli.main import main
from valueguide.policies.backbone import PictureSet
from valueguide.policies.clip_assets import build_clip_folder

PICTURES, HELD_BACK = 15, 3


def _train(out: Path, *more: str) -> dict[str, Any]:
    target = out.parent / "result.json"
    with pytest.raises(SystemExit) as stop:
        main(["train", "backbone", "--pictures", str(PICTURES), "--steps", "3", "--batch-size", "4",
              "--text-steps", "2", "--workers", "1", "--out", str(out), "--json", str(target),
              *more])  # fmt: skip
    assert stop.value.code == 0
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """out: the folder. result: what the command said. taken: which pictures were read, call by call."""
    out = tmp_path_factory.mktemp("backbone") / "out"
    take, taken = PictureSet.take, []

    def watched(self: PictureSet, index: Any) -> Any:
        taken.append(np.asarray(index))
        return take(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PictureSet, "take", watched)
        result = _train(out)
    return SimpleNamespace(out=out, result=result, taken=taken)


def test_it_reports_errors_on_pictures_and_wordings_it_did_not_learn_from(trained: SimpleNamespace) -> None:
    text, vision = trained.result["text"], trained.result["vision"]
    assert np.isfinite(text["loss"]) and text["loss"] > 0
    right = text["held_out_wordings_nearest_to_own_task"] * 18  # of 18 sentences
    assert 0 <= right <= 18 and right == pytest.approx(round(right))
    assert {"from_hand_mm", "pointer", "position"} <= vision.keys()
    assert all(np.isfinite(value) for value in vision.values()) and vision["from_hand_mm"] > 0
    *training, measured = trained.taken
    assert len(training) == 3 and all(index.shape == (4,) for index in training)
    assert measured.tolist() == list(range(PICTURES - HELD_BACK, PICTURES))
    assert np.concatenate(training).max() < PICTURES - HELD_BACK


def test_both_towers_are_saved_as_they_were_trained(trained: SimpleNamespace, tmp_path: Path) -> None:
    start = build_clip_folder(tmp_path / "clip", corpus(), command.VISION, command.TEXT, seed=1)
    new, after = (CLIPModel.from_pretrained(folder) for folder in (start, trained.out / "clip"))
    assert trained.result["backbone"] == str(trained.out / "clip")
    for tower in ("vision_model", "text_model"):
        before, now = (getattr(model, tower).state_dict() for model in (new, after))
        changed = [name for name, value in now.items() if not torch.equal(value, before[name])]
        assert len(changed) > len(now) / 2, tower
    assert torch.equal(new.text_projection.weight, after.text_projection.weight)  # it began as this folder


def test_pictures_that_are_there_are_not_rendered_again(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", None)
    pictures = trained.out / "pictures"
    again = _train(tmp_path / "second", "--picture-folder", str(pictures))
    assert not (tmp_path / "second" / "pictures").exists()
    assert again["vision"] == pytest.approx(trained.result["vision"], rel=1e-3)  # same seed, same data


def test_a_renderer_that_dies_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="rendering process ended with exit status 1"):
        command._render(tmp_path / "file" / "pictures", 2, seed=0, workers=1)


def test_too_few_pictures_are_refused_before_anything_is_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "backbone", "--pictures", "4", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    assert "--pictures: value: expected 5 or more, found 4" in capsys.readouterr().err


def test_a_thousand_pictures_are_held_back_where_there_are_many() -> None:
    assert [command.held_back(n) for n in (52_000, 5000, 4999, 15, 5)] == [1000, 1000, 999, 3, 1]


def test_held_out_wordings_count_as_right_when_their_own_task_is_nearest() -> None:
    number = {task: i for i, task in enumerate(TRAIN)}
    means = {s: number[task] for group in (TRAIN, HELD_OUT) for task, some in group.items() for s in some}
    means |= {s: number["open_drawer"] for s in HELD_OUT["close_drawer"]}

    def tokenizer(sentences: list[str], **options: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([means[s] for s in sentences])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def tower(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        # Alike and of unequal length: only the direction may decide.
        return SimpleNamespace(
            pooler_output=((torch.eye(9) + 0.5) * torch.arange(1.0, 10.0)[:, None])[input_ids]
        )

    assert command._wording_accuracy(tower, tokenizer) == pytest.approx(16 / 18)
