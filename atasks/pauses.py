"""Pauses between attempts that fail."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["pauses"]


def pauses(first: float, longest: float) -> Iterator[float]:
    """Seconds before each next attempt, without an end. They double up to `longest`; up to half of them is left
    out at random, so that not all clients come back at once."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * 2, longest)
