"""A tokenizer with a memory, put in front of the one in a policy's pre-processor."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

_REMEMBERED_TEXTS = 256


class RememberingTokenizer:
    """Keeps the results for the texts it saw last: instructions change rarely, and repeat in a batch."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        # The step that calls this always passes the same options. Padding looks at the longest text
        # only, so each distinct one can stand for its copies.
        distinct = tuple(sorted(set(texts)))
        if distinct not in self._known:
            self._known[distinct] = self._tokenizer(list(distinct), **options)
            if len(self._known) > _REMEMBERED_TEXTS:
                self._known.popitem(last=False)
        result = self._known[distinct]
        if len(texts) == 1:
            return result
        rows = torch.tensor([distinct.index(text) for text in texts])
        return {name: values[rows] for name, values in result.items()}
