"""Registers the value-guided policy with LeRobot, which imports this package by its distribution name.

    lerobot-eval --env.type=wxai --policy.type=vg --policy.device=cpu \\
        --policy.base_policy=outputs/policy --policy.critic=outputs/critic --policy.k=16
"""

from lerobot_policy_vg.configuration_vg import VGConfig

__all__ = ["VGConfig"]
