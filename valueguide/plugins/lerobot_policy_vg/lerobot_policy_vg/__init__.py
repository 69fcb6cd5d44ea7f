"""Registers the value-guided policy `vg` and the reward model `gvl` with LeRobot.

LeRobot imports this package by its distribution name; one named as a reward model it would not look for.

    lerobot-eval --env.type=wxai --policy.type=vg --policy.device=cpu \\
        --policy.base_policy=outputs/policy --policy.critic=outputs/critic --policy.k=16
"""

from lerobot_policy_vg.configuration_gvl import GVLConfig
from lerobot_policy_vg.configuration_vg import VGConfig

__all__ = ["GVLConfig", "VGConfig"]
