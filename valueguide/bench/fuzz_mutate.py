"""Mutations for fuzzing: of msgpack trees, where the structure stays valid, and of plain bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack

#: What readers get wrong: ends of ranges, other types, things that look like more than they are.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1,
    -(2**63), 0.0, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", "a", "\x00", "kind",
    "é" * 9, "x" * 300, b"", b"\x00" * 16, b"\x80\x04N.", [], [[]], [0] * 20, {}, {"": {}}, {"a": [{"b": 0}]},
    "|O", "<f4", ">f8", "u1", "f4", "png", "jpeg", "raw", [0], [-1], [2, 3], [1 << 40] * 2, [1 << 30] * 2,
    msgpack.ExtType(1, b"x"), msgpack.Timestamp(1, 0),
)  # fmt: skip


def mutated_tree(tree: Any, draw: random.Random) -> Any:
    """A copy with one to four nodes replaced, removed, doubled, renamed or wrapped."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        tree = _changed(tree, draw)
    return tree


def _changed(node: Any, draw: random.Random) -> Any:
    inside = isinstance(node, dict | list) and node and draw.random() < 0.85
    if not inside:
        return _replacement(node, draw)
    if isinstance(node, dict):
        copy = dict(node)
        key = draw.choice(list(copy))
        how = draw.random()
        if how < 0.1:
            del copy[key]
        elif how < 0.2:
            copy[draw.choice(["", "new", b"new", 3, *copy])] = copy.pop(key)
        else:
            copy[key] = _changed(copy[key], draw)
        return copy
    items = list(node)
    place = draw.randrange(len(items))
    how = draw.random()
    if how < 0.1:
        del items[place]
    elif how < 0.2:
        items.insert(place, items[place])
    else:
        items[place] = _changed(items[place], draw)
    return items


def _replacement(node: Any, draw: random.Random) -> Any:
    how = draw.random()
    if isinstance(node, bytes) and how < 0.6:
        return mutated_bytes(node, draw)
    if isinstance(node, int) and not isinstance(node, bool) and how < 0.4:
        return node + draw.choice((-1, 1, 256, -(2**31)))
    if how < 0.5:
        return [node] if how < 0.45 else _nested(draw.choice((3, 9, 40)))
    return draw.choice(_VALUES)


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value} if depth % 2 else [value]
    return value


def packed_or(value: Any, otherwise: bytes) -> bytes:
    """msgpack of a mutated tree; `otherwise` where the mutation is beyond msgpack."""
    try:
        return msgpack.packb(value)
    except (ValueError, TypeError, OverflowError):
        return otherwise


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """A copy with bits flipped, bytes changed, cut off, inserted, removed, or a piece doubled."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        draw.choice(_EDITS)(changed, draw)
    return bytes(changed)


def _flip(data: bytearray, draw: random.Random) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _set(data: bytearray, draw: random.Random) -> None:
    """Bytes that open arrays, maps, long strings and extensions in msgpack among them."""
    if data:
        data[draw.randrange(len(data))] = draw.choice(
            (0, 0xFF, 0x7F, 0xC1, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF, 0x91)
        )


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _insert(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data) + 1)
    data[place:place] = draw.randbytes(draw.choice((1, 1, 4, 32)))


def _remove(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data) + 1)
    del data[place : place + draw.choice((1, 1, 4, 32))]


def _double(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data) + 1)
    piece = data[start : start + draw.choice((1, 8, 64))]
    data[start:start] = piece


_EDITS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _set,
    _cut,
    _insert,
    _remove,
    _double,
)
