"""K action chunks from one observation: chooses the sampler of a policy type."""

from __future__ import annotations

from importlib import import_module

from lerobot.policies.pretrained import PreTrainedPolicy

from valueguide.policies.sampling.base import BatchedSampler, Sampler

#: Policy type -> (module, class) of a sampler that shares the prefix. Imported when needed.
_SHARED_PREFIX = {
    "act": ("act", "ActSampler"),
    "diffusion": ("diffusion", "DiffusionSampler"),
    "multi_task_dit": ("multi_task_dit", "MultiTaskDiTSampler"),
    "pi0": ("prefix_cache", "PrefixCacheSampler"),
    "pi05": ("prefix_cache", "PrefixCacheSampler"),
    "smolvla": ("prefix_cache", "PrefixCacheSampler"),
}


def make_sampler(policy: PreTrainedPolicy) -> Sampler:
    """The shared-prefix sampler of this policy type, or the batched one for every other type."""
    if policy.config.type not in _SHARED_PREFIX:
        return BatchedSampler(policy)
    module, name = _SHARED_PREFIX[policy.config.type]
    return getattr(import_module(f"{__name__}.{module}"), name)(policy)
