"""Guessing how many bytes a value takes when it is encoded, without encoding it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

__all__ = ["weight"]

SAMPLE: Final = 16
"""Items of a container that are looked at; the rest is taken to be like them."""
DEPTH: Final = 3
"""Containers within containers that are looked into."""
TEXTS: Final = frozenset({str, bytes, bytearray})
CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})


def weight(value: Any, depth: int = DEPTH) -> int:
    """Guess the bytes. Runs no code of the value's, and looks at a few thousand items at the most, of built-in
    containers; what other objects hold counts for nothing."""
    kind = type(value)
    if kind in TEXTS:
        return len(value)
    if kind not in CONTAINERS or not value:
        return 2
    size = len(value)
    if depth == 0:
        return size
    if kind is dict:
        items: Iterable[Any] = islice(value.items(), SAMPLE)
    elif kind in (list, tuple) and size > SAMPLE:
        items = [value[number * size // SAMPLE] for number in range(SAMPLE)]
    else:
        items = islice(value, SAMPLE)
    looked = [weight(item, depth - 1) for item in items]
    return size + sum(looked) * size // len(looked)
