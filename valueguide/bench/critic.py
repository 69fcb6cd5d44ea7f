"""Speed of the learner: samples per second of a critic update, with cached and with decoded frames."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.bench.measure import peak_memory_mb
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.data.frames import FrameCache
from valueguide.data.loader import ChunkLoader
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.types import Episode, Observation, Step

_LANGUAGE = 384


def random_dataset(root: Path, episodes: int = 8, length: int = 40, side: int = 128) -> EpisodeDataset:
    """A recorded dataset of noise with one camera: only its sizes matter here."""
    rng = np.random.default_rng(0)
    spec = DatasetSpec(10, {"front": (side, side)}, tuple("xyzwgc"), ("dx", "dy", "dz", "dyaw", "grip"))

    def observation() -> Observation:
        image = np.repeat(np.repeat(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8), 8, 0), 8, 1)
        return Observation({"front": image}, rng.random(6, dtype=np.float32), "open the drawer")

    with EpisodeWriter(root, spec) as writer:
        for _ in range(episodes):
            steps = [Step(observation(), rng.random(5, dtype=np.float32)) for _ in range(length)]
            steps[-1].terminated = steps[-1].success = True
            writer.save(Episode(steps, observation(), "open the drawer"))
    return EpisodeDataset.open(root)


def learner_speed(
    dataset: EpisodeDataset,
    encoder: str,
    frames: str,
    batch_size: int,
    seconds: float = 20.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Runs IQL updates for about `seconds`. frames: "cached" (memory-mapped uint8) or "decoded" (PNG).

    Returns samples per second, the share of time the learner waited for data, and peak memory.
    """
    loader = ChunkLoader(
        dataset, 4, batch_size=batch_size, frames=FrameCache.build(dataset) if frames == "cached" else None
    )
    trainer = _trainer(dataset, encoder, device)
    batches = loader.iterate()
    trainer.update(next(batches))  # warm-up: allocation and the first batches
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        trainer.update(next(batches))
        done += batch_size
    elapsed = time.perf_counter() - start
    wait = loader.wait_share
    batches.close()  # type: ignore[attr-defined]
    return {
        "encoder": encoder,
        "frames": frames,
        "batch_size": batch_size,
        "samples_per_second": done / elapsed,
        "data_wait_share": wait,
        "peak_memory_mb": peak_memory_mb(),
    }


def image_bytes(dataset: EpisodeDataset) -> dict[str, float]:
    """Bytes a frame in the uint8 cache, and as float32, which is what LeRobot's replay buffer keeps."""
    cache = FrameCache.build(dataset)
    frames = [cache.images(np.array([0]), camera) for camera in dataset.cameras]
    cached = float(sum(frame.nbytes for frame in frames))
    as_float = float(sum(frame.astype(np.float32).nbytes for frame in frames))
    return {"uint8": cached, "float32": as_float, "ratio": cached / as_float}


def _trainer(dataset: EpisodeDataset, encoder: str, device: str) -> CriticTrainer:
    spec = CriticSpec(
        executed_length=4,
        action_names=("dx", "dy", "dz", "dyaw", "grip"),
        state_dim=dataset.state.shape[1],
        cameras={name: dataset.image_shape(name) for name in dataset.cameras},
    )
    normalizers = Normalizers(Normalizer.min_max(dataset.action), Normalizer.mean_std(dataset.state))
    embeddings = np.ones((len(dataset.instructions), _LANGUAGE), np.float32) / np.sqrt(_LANGUAGE)
    network = NetworkConfig(encoder, language_dim=_LANGUAGE)
    config = TrainConfig("iql")
    return CriticTrainer(spec, network, config, normalizers, embeddings.astype(np.float32), device=device)
