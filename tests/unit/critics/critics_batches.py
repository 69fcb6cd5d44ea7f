"""Small random batches and trainers that the tests of the critics share."""

import numpy as np
import torch

from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.encoders import Inputs
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.types import ChunkBatch

IMAGE_SPEC = {"front": (32, 32), "wrist": (32, 32)}
INSTRUCTIONS = ["open the drawer", "close the drawer", "press the button"]
EMBEDDINGS = np.eye(3, 6, dtype=np.float32)
ACTION_NAMES = ("x", "y", "grip")
STATE, PRIVILEGED, FEATURES = 4, 5, 7


def batch_inputs(size: int, seed: int = 0) -> Inputs:
    """Everything that any encoder with 6 language numbers could ask for."""
    g = torch.Generator().manual_seed(seed)
    images = {n: torch.randint(0, 256, (size, *s, 3), generator=g).byte() for n, s in IMAGE_SPEC.items()}
    vectors = [torch.randn(size, n, generator=g) for n in (6, STATE, PRIVILEGED, FEATURES)]
    return Inputs(*vectors, images)


def make_batch(size: int = 8, steps: int = 2, seed: int = 0, kind: str = "state") -> ChunkBatch:
    """Random transitions with what the encoder `kind` reads and nothing more; the last one is terminal."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def pictures() -> dict[str, np.ndarray]:
        if kind not in ("small_film_cnn", "resnet34_film"):
            return {}
        return {n: rng.integers(0, 256, (size, *s, 3), dtype=np.uint8) for n, s in IMAGE_SPEC.items()}

    discount = np.full(size, 0.98**steps, np.float32)
    discount[-1] = 0
    return ChunkBatch(
        state=normal(size, STATE),
        next_state=normal(size, STATE),
        instruction=rng.integers(0, 3, size),
        actions=rng.uniform(-0.1, 0.1, (size, steps, 3)).astype(np.float32),
        valid=np.ones((size, steps), bool),
        reward=np.full(size, -1, np.float32),
        discount=discount,
        mc_return=rng.uniform(-20, 0, size).astype(np.float32),
        index=np.arange(size),
        images=pictures(),
        next_images=pictures(),
        environment_state=normal(size, PRIVILEGED) if kind == "state" else None,
        next_environment_state=normal(size, PRIVILEGED) if kind == "state" else None,
        features=normal(size, FEATURES) if kind == "frozen_clip" else None,
        next_features=normal(size, FEATURES) if kind == "frozen_clip" else None,
    )


def make_trainer(
    algo: str = "iql", kind: str = "state", steps: int = 2, network: dict | None = None, **config: object
) -> CriticTrainer:
    """A small trainer; `network` and `config` override fields of NetworkConfig and TrainConfig."""
    spec = CriticSpec(
        executed_length=steps,
        action_names=ACTION_NAMES,
        state_dim=STATE,
        environment_state_dim=PRIVILEGED if kind == "state" else 0,
        cameras=IMAGE_SPEC if kind != "state" else {},
    )
    sizes = {"hidden": 16, "language_dim": 6, "feature_dim": FEATURES if kind == "frozen_clip" else 0}
    normalizers = Normalizers(
        action=Normalizer(np.zeros(3, np.float32), np.full(3, 0.1, np.float32), clip=True),
        state=_unit(STATE),
        environment_state=_unit(PRIVILEGED) if kind == "state" else None,
        features=_unit(FEATURES) if kind == "frozen_clip" else None,
    )
    return CriticTrainer(
        spec,
        NetworkConfig(kind, **(sizes | (network or {}))),
        TrainConfig(algo, **({"warmup_steps": 4} | config)),
        normalizers,
        EMBEDDINGS,
    )


def _unit(size: int) -> Normalizer:
    return Normalizer(np.zeros(size, np.float32), np.ones(size, np.float32))
