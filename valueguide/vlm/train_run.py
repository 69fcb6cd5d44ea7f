"""One run of `valueguide progress train`: its phases in order, its state on disk, its quality on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from valueguide.critics.checkpoint import load_exactly, load_optimiser, load_tensors
from valueguide.critics.folders import replacing
from valueguide.critics.manifest import digest, read_json, sha256
from valueguide.data.layout import make_folder, write_json
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import CheckpointError
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.frames import sample_positions
from valueguide.progress.local import TransformersBackend
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Clip
from valueguide.progress.voc import average_ranks
from valueguide.vlm.small_vlm import (
    VlmSize,
    build_small_vlm,
    save_small_vlm,
    take_tower,
    to_pixels,
)
from valueguide.vlm.train_answers import AnswerPhase
from valueguide.vlm.train_data import (
    EpisodePictures,
    Questions,
    TaughtEpisode,
    order_ceiling,
    split,
    taught_episodes,
)
from valueguide.vlm.train_phase import Phase, VlmTrainSettings
from valueguide.vlm.train_sight import SightPhase, tower_outputs

WHAT = "a small model trained on simulation, for this simulator only; it knows nothing of any other scene"
_STATE, _STATE_JSON, _TENSORS = "state", "state.json", "state.safetensors"
_FEATURES = "tower.npy"
#: Frames of a held-out clip, as `valueguide progress estimate` asks about by default.
_ASKED_FRAMES = 15
#: Pictures that set the scale of the tower's first layer.
_SCALE_PICTURES = 128
Say = Callable[[str], None]
Count = Callable[[int], None]


class VlmRun:
    """A run in the folder `training`, fresh or resumed; the model appears in the folder `out`.

    tower: critic folder whose vision tower is the start; None starts from random weights.
    related: see Questions. Raises DataError, ConfigError, CheckpointError (a run with other settings).
    """

    def __init__(
        self,
        datasets: Sequence[EpisodeDataset],
        camera: str,
        settings: VlmTrainSettings,
        training: Path,
        out: Path,
        tower: Path | None = None,
        related: Sequence[str] = (),
        size: VlmSize | None = None,
    ) -> None:
        self.settings, self.training, self.out = settings, training, out
        self.pictures = EpisodePictures(datasets, camera)
        self.episodes = taught_episodes(datasets, self.pictures)
        self.taught, self.held = split(self.episodes)
        # Before anything is trained: what cannot be asked about is an error now.
        self._asked, self._held_asked = (
            Questions(part, self.episodes, self.pictures, settings.frames, tuple(related))
            for part in (self.taught, self.held)
        )
        size = size or VlmSize()
        instructions = sorted({episode.instruction for episode in self.episodes})
        self.model, self.processor = build_small_vlm(size, instructions, settings.seed)
        self._trained_tower = tower is not None
        if tower is not None:
            rows = np.linspace(0, self.pictures.blank - 1, _SCALE_PICTURES).astype(np.int64)
            take_tower(self.model, tower, to_pixels(self.processor, self.pictures.take(rows)))
        self.facts = {
            "what": WHAT,
            "datasets": [d.dataset_id for d in datasets],
            "camera": camera,
            "episodes": {"taught": len(self.taught), "held_out": len(self.held)},
            "successes": sum(episode.success for episode in self.taught),
            "tower": read_json(tower / "manifest.json")["version"] if tower is not None else "",
            "related": list(related),
            "size": vars(size),
            "settings": settings.plain(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "made_with": {"torch": torch.__version__},
        }
        make_folder(training)
        save_small_vlm(training / "draft", self.model, self.processor, {"what": "tokenizer and shape only"})
        self._backend = TransformersBackend(str(training / "draft"))

    @property
    def total(self) -> int:
        """Updates of a whole run."""
        return self.settings.sight_steps + self.settings.steps

    def train(
        self, every: int, count: Count = lambda n: None, say: Say = lambda text: None
    ) -> dict[str, Any]:
        """All that is left of the run; saved, and measured on held-out episodes, `every` so many updates.

        Returns the facts and the last quality; the model with both in its manifest is in `out`.
        """
        saved = self._saved()
        if saved.get("phase") != AnswerPhase.name:
            self._see(saved, every, count, say)
        else:
            count(self.settings.sight_steps)
        phase = self._answering(saved, say)
        count(phase.step)
        quality: dict[str, Any] = {}
        while True:
            ended = phase.step >= phase.steps
            if ended or (phase.step and phase.step % every == 0):
                self._save(phase)
                quality = self._measure(phase)
                say(f"step {phase.step}: {_line(quality)}")
            if ended:
                return {**self.facts, "quality": quality}
            losses = phase.update()
            count(1)
            if phase.step % 100 == 0:
                say(f"step {phase.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in losses.items()))

    def _see(self, saved: dict[str, Any], every: int, count: Count, say: Say) -> None:
        tasks = sorted({episode.task for episode in self.episodes})
        features = self._features(say) if self._trained_tower else None
        phase = SightPhase(
            self.model,
            self.processor,
            self.taught,
            tasks,
            self.pictures,
            features,
            self.settings,
            self.facts["related"],
        )
        self._resume(phase, saved)
        count(phase.step)
        while phase.step < phase.steps:
            phase.update()
            count(1)
            if phase.step % every == 0 or phase.step == phase.steps:
                self._save(phase)
                say(f"sight {phase.step}: held-out error {phase.error(_spread(self.held, 64)):.3f}")

    def _answering(self, saved: dict[str, Any], say: Say) -> AnswerPhase:
        if saved.get("phase") == AnswerPhase.name:
            self._load_model(saved)
        phase = AnswerPhase(
            self.model,
            self._backend.encode,
            self.processor.tokenizer,
            self._asked,
            self._features(say),
            self.settings,
        )
        if saved.get("phase") == AnswerPhase.name:
            self._resume(phase, saved)
        return phase

    def _features(self, say: Say) -> NDArray[np.float16]:
        """What the tower, as it is now, makes of every picture; kept beside the run's state."""
        weights = {n: v.numpy().tobytes() for n, v in self.model.model.vision_model.state_dict().items()}
        tower = hashlib.sha256(b"".join(weights.values())).hexdigest()
        note, file = self.training / f"{_FEATURES}.json", self.training / _FEATURES
        if not note.exists() or read_json(note) != {"tower": tower}:
            note.unlink(missing_ok=True)
            say("the tower looks at every picture once")
            tower_outputs(self.model, self.processor, self.pictures, file)
            write_json(note, {"tower": tower})
        return np.load(file, mmap_mode="r")

    # -- state -----------------------------------------------------------------------------------

    def _plan(self) -> str:
        """Of everything that a resumed run must have alike; it may get more updates."""
        facts = {key: value for key, value in self.facts.items() if key != "made_with"}
        settings = {key: value for key, value in self.settings.plain().items() if key != "steps"}
        return digest({**facts, "settings": settings})

    def _save(self, phase: Phase) -> None:
        tensors = {f"model.{n}": v for n, v in self.model.state_dict().items() if n != "lm_head.weight"}
        for name, module in phase.modules.items():
            if name in ("reader", "hint"):
                tensors |= {f"{name}.{n}": v for n, v in module.state_dict().items()}
        for index, state in phase.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": value for key, value in state.items()}
        with replacing(self.training / _STATE) as draft:
            save_file({n: v.detach().clone().contiguous() for n, v in tensors.items()}, draft / _TENSORS)
            facts = {"phase": phase.name, "step": phase.step, "plan": self._plan()}
            facts["sha256"] = sha256(draft / _TENSORS)
            write_json(draft / _STATE_JSON, facts)

    def _saved(self) -> dict[str, Any]:
        path = self.training / _STATE / _STATE_JSON
        if not path.exists():
            return {}
        saved = read_json(path)
        if saved.get("plan") != self._plan():
            raise CheckpointError(f"{path}: holds a run with other data or settings. Use another --out")
        if sha256(path.parent / _TENSORS) != saved.get("sha256"):
            raise CheckpointError(f"{path.parent / _TENSORS}: the content does not match its recorded hash")
        return saved

    def _load_model(self, saved: dict[str, Any]) -> dict[str, torch.Tensor]:
        path = self.training / _STATE / _TENSORS
        tensors = load_tensors(path)
        own = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
        own["lm_head.weight"] = own["model.text_model.embed_tokens.weight"]
        load_exactly(self.model, own, path)
        return tensors

    def _resume(self, phase: Phase, saved: dict[str, Any]) -> None:
        if saved.get("phase") != phase.name:
            return
        tensors = self._load_model(saved)
        for name in {"reader", "hint"} & phase.modules.keys():
            mine = {n.removeprefix(f"{name}."): v for n, v in tensors.items() if n.startswith(f"{name}.")}
            load_exactly(phase.modules[name], mine, self.training / _STATE / _TENSORS)
        flat = {n.removeprefix("optimiser."): v for n, v in tensors.items() if n.startswith("optimiser.")}
        load_optimiser(phase.optimiser, flat)
        phase.step = int(saved["step"])

    # -- quality ---------------------------------------------------------------------------------

    def _measure(self, phase: AnswerPhase) -> dict[str, Any]:
        """Writes the model to `out` and asks it as a user would."""
        self.model.eval()
        quality: dict[str, Any] = {"losses": phase.held_out(self._held_asked)}
        save_small_vlm(self.out, self.model, self.processor, {**self.facts, "step": phase.step})
        quality |= ask_held_out(self.out, _spread(self.held, 45), self.pictures)
        facts = {**self.facts, "step": phase.step, "quality": quality}
        quality["version"] = save_small_vlm(self.out, self.model, self.processor, facts)
        self.model.train()
        return quality


def ask_held_out(model: Path, episodes: Sequence[TaughtEpisode], pictures: EpisodePictures) -> dict[str, Any]:
    """VOC, final values and parse rate of a model folder, one shuffle a clip; see docs/progress.md.

    order_ceiling: the VOC of the taught values themselves on the successes.
    """
    settings = AskSettings(shuffles=1, reasks=0, wording=Wording("lines"))
    estimator = GvlEstimator(TransformersBackend(str(model)), settings)
    finals: dict[bool, list[float]] = {True: [], False: []}
    vocs: dict[bool, list[float]] = {True: [], False: []}
    errors, parsed = [], 0
    for episode in episodes:
        positions = sample_positions(len(episode.rows), _ASKED_FRAMES)
        clip = Clip(pictures.take(episode.rows[positions]), episode.instruction, positions)
        found = estimator.estimate(clip)
        if found.final is None:
            continue
        parsed += 1
        finals[episode.success].append(found.final)
        errors.append(float(np.abs(found.values - episode.values[positions])[1:].mean()))
        if found.voc is not None:
            vocs[episode.success].append(found.voc)
    return {
        "episodes": len(episodes),
        "parse_rate": parsed / len(episodes),
        "error": _mean(errors),
        "voc_success": _mean(vocs[True]),
        "voc_failure": _mean(vocs[False]),
        "order_ceiling": order_ceiling(episodes, _ASKED_FRAMES),
        "final_success": _mean(finals[True]),
        "final_failure": _mean(finals[False]),
        "auc_final": _auc(finals[True], finals[False]),
    }


def _auc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Area under the ROC curve, ties counted half; None without both kinds."""
    if not positive or not negative:
        return None
    ranks = average_ranks(np.array([*positive, *negative], np.float64))[: len(positive)]
    count = len(positive)
    return float((ranks.sum() - count * (count + 1) / 2) / (count * len(negative)))


def _spread(episodes: Sequence[TaughtEpisode], count: int) -> list[TaughtEpisode]:
    """At most `count` of them, evenly spread over all tasks and datasets."""
    chosen = np.unique(np.linspace(0, len(episodes) - 1, min(count, len(episodes))).astype(int))
    return [episodes[i] for i in chosen]


def _line(quality: dict[str, Any]) -> str:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in quality["losses"].items())
    rest = {name: value for name, value in quality.items() if isinstance(value, float)}
    return f"held out: {losses}; " + ", ".join(f"{name} {value:.2f}" for name, value in rest.items())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
