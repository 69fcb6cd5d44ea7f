"""From the options of `valueguide progress` to an estimator and the clips it is asked about."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.cli.bags import imported_bag, is_bag
from valueguide.cli.common import shipped
from valueguide.cli.device import usable_device
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.batch import Job
from valueguide.progress.cache import AnswerCache
from valueguide.progress.controls import CONTROLS, REAL, control_clip
from valueguide.progress.estimate import AskSettings, Estimator, GvlEstimator, TokenProbability
from valueguide.progress.frames import sample_positions, shrink, video_frames
from valueguide.progress.http import Patience
from valueguide.progress.openai import OpenAiBackend
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Answer, Clip, Example, Int64, ProgressBackend, Sampling
from valueguide.progress.rows import kind_of
from valueguide.progress.shards import ALONE, Place, held
from valueguide.types import UInt8

#: Where a dataset has one instruction, the control with a wrong one needs another.
_ELSEWHERE = "wave at the camera"


def dataset_folder(args: argparse.Namespace) -> Path:
    """--dataset, or the dataset imported from it beside --out where it is a bag; once for all processes."""
    if not is_bag(args.dataset):
        return Path(args.dataset)
    target = args.out.with_name(args.out.name + ".dataset")
    with held(target):
        return imported_bag(args.dataset, target, args.robot, args.namespace)


def make_estimator(
    args: argparse.Namespace, dataset: EpisodeDataset, place: Place = ALONE
) -> tuple[Estimator, int]:
    """The estimator, and how many clips it takes at once. Raises ConfigError, CheckpointError, DataError."""
    cache = AnswerCache(Path(args.cache) if args.cache else None)
    if args.backend == "topreward":
        backend = _local(args, place)
        return TokenProbability(backend, cache), backend.concurrency
    answer: Answer = args.answer or ("json" if args.backend == "openai" else "lines")
    settings = AskSettings(
        shuffles=args.shuffles,
        seed=args.seed,
        reasks=args.reasks,
        wording=Wording(answer, args.describe, args.examples_first),
        sampling=Sampling(args.temperature, args.top_p, args.max_tokens),
    )
    examples = make_examples(args, dataset)
    backend = _endpoint(args) if args.backend == "openai" else _local(args, place)
    return GvlEstimator(backend, settings, examples, cache), backend.concurrency


def make_examples(args: argparse.Namespace, dataset: EpisodeDataset) -> list[Example]:
    """In-context clips. Progress is taken as linear in time, as the paper does for demonstrations."""
    examples = []
    if args.examples is not None:
        source = EpisodeDataset.open(args.examples)
        chosen = parse_episodes(args.example_episodes, source, "--example-episodes")
        if source.dataset_id == dataset.dataset_id:
            both = set(chosen) & set(parse_episodes(args.episodes, dataset, "--episodes"))
            if both:
                raise ConfigError(
                    mismatch("--example-episodes", "episodes", "others than --episodes", sorted(both))
                )
        for episode in chosen:
            if not source.episode_success[episode]:
                raise DataError(f"{args.examples}: episode {episode}: expected a success, found none")
            clip = load_clip(
                source, episode, cameras_of(args, source)[0], args.example_frames, args.longest_edge
            )
            progress = (clip.positions / clip.positions[-1]).astype(np.float32)
            examples.append(Example(clip.frames, progress, clip.task))
    if args.example_video is not None:
        if not args.example_task:
            raise ConfigError("--example-video: expected --example-task with it, found none")
        seen = video_frames(args.example_video, args.example_frames)
        frames = np.stack([shrink(frame, args.longest_edge) for frame in seen])
        progress = np.linspace(0.0, 1.0, len(frames)).astype(np.float32)
        examples.append(Example(frames, progress, args.example_task, "human_video"))
    return examples


def make_jobs(args: argparse.Namespace, dataset: EpisodeDataset) -> list[Job]:
    """One job for each episode, camera and variant. Pictures are read when a job's turn comes."""
    episodes = parse_episodes(args.episodes, dataset, "--episodes")
    controlled = set(_controlled(args, episodes))
    lock = threading.Lock()  # the reader's open files are not made for several threads
    return [
        Job(
            (int(dataset.episode_index[episode]), camera, variant),
            _loader(args, dataset, episode, camera, variant, lock),
            _facts(args, dataset, episode),
        )
        for episode in episodes
        for camera in cameras_of(args, dataset)
        for variant in (REAL, *(CONTROLS if episode in controlled else ()))
    ]


def _controlled(args: argparse.Namespace, episodes: list[int]) -> list[int]:
    """The episodes whose controls are asked about too: all, or a seeded sample; never none."""
    if args.control_episodes < 0:
        raise ConfigError(mismatch("--control-episodes", "count", "0 (all) or more", args.control_episodes))
    count = args.control_episodes or len(episodes)
    return [episodes[i] for i in np.random.default_rng(args.seed).permutation(len(episodes))[:count]]


def load_clip(dataset: EpisodeDataset, episode: int, camera: str, frames: int, longest_edge: int) -> Clip:
    """Frames of one episode (its place in the dataset) and, where known, what followed its last action."""
    start, end = int(dataset.episode_start[episode]), int(dataset.episode_end[episode])
    positions = episode_positions(dataset, episode, frames)
    rows = np.where(start + positions < end, start + positions, dataset.frames + episode)
    images: list[UInt8] = [shrink(dataset.image(int(row), camera), longest_edge) for row in rows]
    return Clip(np.stack(images), dataset.instructions[dataset.instruction[start]], positions)


def episode_positions(dataset: EpisodeDataset, episode: int, frames: int) -> Int64:
    """int64 (n,): which frames of the episode are shown; its length stands for the final observation."""
    length = int(dataset.episode_end[episode] - dataset.episode_start[episode])
    return sample_positions(length + int(dataset.has_final[episode]), frames)


def parse_episodes(text: str, dataset: EpisodeDataset, option: str) -> list[int]:
    """Places in the dataset of the episodes that "0-9,12" names; "" means all. ConfigError for others."""
    if not text:
        return list(range(dataset.episodes))
    place = {int(number): i for i, number in enumerate(dataset.episode_index)}
    chosen: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(mismatch(option, "episodes", "numbers and ranges such as 0-9,12", repr(text)))
        wanted = range(int(first), int(last or first) + 1)
        missing = [number for number in wanted[: len(place) + 1] if number not in place]
        if missing or not wanted:
            raise ConfigError(mismatch(option, "episodes", f"those of {dataset.root}", repr(piece)))
        chosen += [place[number] for number in wanted]
    return list(dict.fromkeys(chosen))


def _loader(
    args: argparse.Namespace,
    dataset: EpisodeDataset,
    episode: int,
    camera: str,
    variant: str,
    lock: threading.Lock,
) -> Callable[[], Clip]:
    task = dataset.instructions[dataset.instruction[dataset.episode_start[episode]]]
    other = _other_task(args, dataset, task) if variant == "wrong_instruction" else ""

    def load() -> Clip:
        with lock:
            clip = load_clip(dataset, episode, camera, args.frames, args.longest_edge)
        return control_clip(clip, variant, other)

    return load


def _other_task(args: argparse.Namespace, dataset: EpisodeDataset, task: str) -> str:
    """The next instruction of the dataset that words another task, as far as recorded task names tell."""
    if args.wrong_instruction:
        return str(args.wrong_instruction)
    names = dataset.instructions
    starts = dataset.instruction[dataset.episode_start]
    words = {
        names[start]: facts.get("task_name") for start, facts in zip(starts, dataset.metadata, strict=True)
    }
    following = [*names[names.index(task) + 1 :], *names[: names.index(task)]]
    following = [name for name in following if words[task] is None or words.get(name) != words[task]]
    return following[0] if following else _ELSEWHERE


def _facts(args: argparse.Namespace, dataset: EpisodeDataset, episode: int) -> dict[str, Any]:
    positions = episode_positions(dataset, episode, args.frames)
    times = [round(float(position) / dataset.fps, 6) for position in positions]
    if not dataset.outcomes_recorded:
        return {"time_s": times, "success": None}
    success, facts = bool(dataset.episode_success[episode]), dataset.metadata[episode]
    named = {"task_name": facts["task_name"]} if facts.get("task_name") else {}
    return {"time_s": times, "success": success, "kind": kind_of(facts, success), **named}


def cameras_of(args: argparse.Namespace, dataset: EpisodeDataset) -> list[str]:
    """--camera, each once, or the dataset's first. Raises DataError when there is no such camera."""
    cameras = args.camera or dataset.cameras[:1]
    if not cameras:
        raise DataError(f"{dataset.root}: expected a dataset with pictures, found no camera")
    for camera in cameras:
        dataset.image_shape(camera)  # names the cameras there are when this one is not
    return list(dict.fromkeys(cameras))


def _local(args: argparse.Namespace, place: Place) -> ProgressBackend:
    from valueguide.progress.local import TransformersBackend

    return TransformersBackend(
        args.model or shipped("wxai", "progress"),
        args.revision,
        place.device(usable_device(args.device)),
        args.dtype,
        _options(args.processor, "--processor"),
    )


def _endpoint(args: argparse.Namespace) -> ProgressBackend:
    if not args.model:
        raise ConfigError(mismatch("--model", "value", "the model's name at the endpoint", "none"))
    return OpenAiBackend(
        args.url,
        args.model,
        args.key_env,
        args.schema,
        args.concurrency,
        Patience(args.timeout, args.tries),
        _options(args.fields, "--fields"),
    )


def _options(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(mismatch(option, "value", "a JSON object", repr(text)))
    return found
