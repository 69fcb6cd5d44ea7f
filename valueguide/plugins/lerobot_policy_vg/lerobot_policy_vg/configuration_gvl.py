"""Settings of the reward model `gvl`: progress by a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.configs.rewards import RewardModelConfig
from lerobot.utils.constants import OBS_IMAGES

from valueguide.errors import ConfigError, mismatch

BACKENDS = ("transformers", "openai")


@RewardModelConfig.register_subclass("gvl")
@dataclass
class GVLConfig(RewardModelConfig):
    """What is asked, and of which model; see docs/progress.md.

    model: folder, Hub name, or name at the endpoint. backend: one of BACKENDS. url: of the endpoint.
    key_variable: environment variable with the endpoint's key; "" sends none.
    image_key: observation with the frames; task_key: where the instruction is; default_task: without one.
    frames: so many evenly spread frames of those given, the first and the last among them.
    shuffles, seed, reasks: see `AskSettings`. answer: "lines" or "json". longest_edge: shrink to this; 0: as
    they are.
    """

    model: str = ""
    backend: str = "transformers"
    url: str = ""
    key_variable: str = ""
    image_key: str = OBS_IMAGES + ".top"
    task_key: str = "task"
    default_task: str = ""
    frames: int = 15
    shuffles: int = 3
    seed: int = 0
    reasks: int = 2
    answer: str = "lines"
    longest_edge: int = 0
    #: Pixels go to the model's own processor as they are.
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, expected, ok in (
            ("model", "a folder or a name", bool(self.model)),
            ("backend", " or ".join(BACKENDS), self.backend in BACKENDS),
            ("frames", "2 or more", self.frames >= 2),
        ):
            if not ok:
                raise ConfigError(mismatch("reward model gvl", name, expected, getattr(self, name) or "none"))
        self.input_features.setdefault(self.image_key, PolicyFeature(FeatureType.VISUAL, (3, 224, 224)))
        self.output_features.setdefault("reward", PolicyFeature(FeatureType.REWARD, (1,)))
