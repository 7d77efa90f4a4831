"""The seals that were seen lately."""

from __future__ import annotations

from typing import Final

__all__ = ["Replays"]

SECONDS: Final = 600.0
SIZE: Final = 100_000


class Replays:
    """Remembers seals for `seconds`, or the last `size` of them, and twice as long and as many at most. A message
    that is sent again has a seal of its own, with another time: only one that somebody recorded comes with a seal
    that came before."""

    def __init__(self, size: int = SIZE, seconds: float = SECONDS) -> None:
        self._size = size
        self._seconds = seconds
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()
        """Those before, which are forgotten together: to forget them one by one would cost each message."""
        self._due = 0.0
        """When the new ones become the old ones."""

    def seen(self, mac: bytes, now: float) -> bool:
        """Say whether it came before, and remember it. `now` is any clock that never goes back, in seconds."""
        if now >= self._due or len(self._new) >= self._size:
            self._turn(now)
        short = mac[:16]
        if short in self._new or short in self._old:
            return True
        self._new.add(short)
        return False

    def _turn(self, now: float) -> None:
        late = max(now - self._due, 0.0)
        if late < self._seconds:
            self._old, self._new = self._new, set()
        else:  # nothing came for a while: all of them are too old
            self._old, self._new, late = set(), set(), 0.0
        self._due = now - late + self._seconds

    def __len__(self) -> int:
        return len(self._new) + len(self._old)
