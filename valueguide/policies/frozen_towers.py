"""What the frozen towers of a multi_task_dit say is remembered while the rest of it learns.

Each sentence and each picture goes through its tower once, however often a batch draws it. On a processor
that is nearly all that an update of such a policy costs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

#: Matrix libraries round rows by how many are computed together: in batches of one size, what is remembered
#: does not depend on what else was asked.
_ROWS = 16


class PictureMemory:
    """Outputs of one frozen vision tower by picture, 16 bytes and the output each; emptied for another."""

    def __init__(self) -> None:
        self._tower = b""
        self._known: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._known)

    def belongs_to(self, tower: nn.Module) -> None:
        """Forget everything unless `tower` has the weights of the last one."""
        digest = hashlib.blake2b()
        for name, value in tower.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        if digest.digest() != self._tower:
            self._tower, self._known = digest.digest(), {}

    @torch.no_grad()
    def outputs(self, tower: nn.Module, pictures: Tensor) -> Tensor:
        """What `tower` makes of each of `pictures` (B, …); no gradient."""
        flat = pictures.detach().cpu().contiguous().numpy()
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in flat]
        unknown = list({key: row for row, key in enumerate(keys) if key not in self._known}.values())
        for start in range(0, len(unknown), _ROWS):
            rows = unknown[start : start + _ROWS]
            made = tower(pictures[rows + rows[-1:] * (_ROWS - len(rows))])
            self._known |= {keys[row]: out.clone() for row, out in zip(rows, made, strict=False)}
        return torch.stack([self._known[key] for key in keys])


@contextlib.contextmanager
def frozen_towers_once(policy: PreTrainedPolicy, memory: PictureMemory | None = None) -> Iterator[None]:
    """Inside, the frozen towers of a multi_task_dit run once for each sentence and each picture.

    memory: of pictures, to use again later. Pictures that are cropped at random, other types of policy, and
    towers that learn: no change.
    """
    encoder = getattr(policy, "observation_encoder", None)
    if policy.config.type != "multi_task_dit" or encoder is None:
        yield
        return
    text, vision = encoder.text_encoder, encoder.vision_encoder
    encoder.text_encoder = _KnownSentences(text)
    cropped = policy.config.image_crop_shape is not None and policy.config.image_crop_is_random
    if vision is not None and not cropped and not any(p.requires_grad for p in vision.parameters()):
        encoder.vision_encoder = _KnownPictures(vision, PictureMemory() if memory is None else memory)
    try:
        yield
    finally:
        encoder.text_encoder, encoder.vision_encoder = text, vision


class _KnownPictures(nn.Module):
    """A frozen vision encoder whose outputs are remembered."""

    def __init__(self, encoder: nn.Module, memory: PictureMemory) -> None:
        super().__init__()
        self.encoder, self._memory = encoder, memory
        memory.belongs_to(encoder)

    def forward(self, pictures: Tensor) -> Tensor:
        return self._memory.outputs(self.encoder, pictures)


class _KnownSentences(nn.Module):
    """A text encoder whose tower's outputs are remembered; its projection still learns."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self._known: dict[bytes, Tensor] = {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        keys = [row.tobytes() for row in input_ids.cpu().numpy()]
        for i, key in enumerate(keys):
            if key not in self._known:
                with torch.no_grad():
                    tower = self.encoder.text_encoder
                    out = tower(input_ids=input_ids[i : i + 1], attention_mask=attention_mask[i : i + 1])
                self._known[key] = out.pooler_output[0]
        return self.encoder.projection(torch.stack([self._known[key] for key in keys]))
