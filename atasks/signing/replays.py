"""The seals that were seen lately."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["Replays"]

SECONDS: Final = 600.0
SIZE: Final = 100_000


class Replays:
    """Remembers seals for `seconds`, at most `size` of them. A message that is sent again has a seal of its own,
    with another time: only one that somebody recorded comes with a seal that came before."""

    def __init__(self, size: int = SIZE, seconds: float = SECONDS) -> None:
        self._size = size
        self._seconds = seconds
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._due = 0.0
        """Until then nothing is forgotten for its age."""

    def seen(self, mac: bytes, now: float) -> bool:
        """Say whether it came before, and remember it. `now` is any clock that never goes back, in seconds."""
        memory = self._seen
        if now >= self._due or len(memory) > self._size:
            self._forget(now)
        short = mac[:16]
        if short in memory:
            return True
        memory[short] = now
        return False

    def _forget(self, now: float) -> None:
        memory, until = self._seen, now - self._seconds
        while memory and (len(memory) > self._size or next(iter(memory.values())) <= until):
            memory.popitem(last=False)
        self._due = next(iter(memory.values()), now) + self._seconds

    def __len__(self) -> int:
        return len(self._seen)
