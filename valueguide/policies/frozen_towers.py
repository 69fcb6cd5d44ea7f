"""What the frozen towers of a multi_task_dit say is remembered while the rest of it learns.

Each sentence and each picture goes through its tower once, however often a batch draws it. On a processor
that is nearly all that an update of such a policy costs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

#: Matrix libraries round rows by how many are computed together: in batches of one size, what is remembered
#: does not depend on what else was asked.
_ROWS = 16
#: Rows of names -> the pictures there, float32 (rows, 3, h, w), as the policy's processor makes them.
Pictures = Callable[[list[int]], Tensor]
Look = Callable[[Tensor], Tensor]
See = Callable[[Sequence[Hashable], Pictures], Tensor]


class PictureMemory:
    """Outputs of one frozen vision tower by the picture's name. Another tower empties it."""

    def __init__(self) -> None:
        self._tower = b""
        self._known: dict[Hashable, Tensor] = {}

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
    def outputs(self, look: Look, names: Sequence[Hashable], pictures: Pictures) -> Tensor:
        """Of the B pictures called `names`; for those that are not known, `look` is shown `pictures`."""
        unknown = list({name: row for row, name in enumerate(names) if name not in self._known}.values())
        for start in range(0, len(unknown), _ROWS):
            rows = unknown[start : start + _ROWS]
            made = look(pictures(rows + rows[-1:] * (_ROWS - len(rows))))
            self._known |= {names[row]: out.clone() for row, out in zip(rows, made, strict=False)}
        return torch.stack([self._known[name] for name in names])


@contextlib.contextmanager
def frozen_towers_once(policy: PreTrainedPolicy, memory: PictureMemory) -> Iterator[See | None]:
    """Inside, the frozen towers of a multi_task_dit run once for each sentence and each picture.

    Yields what takes (names, pictures), as `PictureMemory.outputs`, and gives what the policy's batches hold
    in place of pictures then. None where pictures stay what they are: they are cropped at random, each camera
    has a tower of its own, the tower learns, there are no pictures, or it is another type of policy.
    """
    encoder = getattr(policy, "observation_encoder", None)
    if policy.config.type != "multi_task_dit" or encoder is None:
        yield None
        return
    text, vision, changes = encoder.text_encoder, encoder.vision_encoder, (encoder.do_resize, encoder.do_crop)
    encoder.text_encoder = _KnownSentences(text)
    cropped = encoder.do_crop and policy.config.image_crop_is_random
    see: See | None = None
    if vision is not None and not cropped and not any(p.requires_grad for p in vision.parameters()):
        resize, crop = ([encoder.resize] if changes[0] else []), ([encoder.center_crop] if changes[1] else [])
        memory.belongs_to(vision)
        see = partial(memory.outputs, nn.Sequential(*resize, *crop, vision))
        encoder.vision_encoder, encoder.do_resize, encoder.do_crop = nn.Identity(), False, False
    try:
        yield see
    finally:
        encoder.text_encoder, encoder.vision_encoder = text, vision
        encoder.do_resize, encoder.do_crop = changes


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
