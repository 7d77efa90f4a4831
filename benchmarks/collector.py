"""Time that the garbage collector takes of a process."""

from __future__ import annotations

import gc
import time
from typing import Any, Self

__all__ = ["Collector"]


class Collector:
    """Times the collections of this process while it is entered."""

    def __init__(self, oldest: int | None = None) -> None:
        """`oldest`: so many looks at the younger objects make it look at all of them; None: as Python has it."""
        self.seconds = 0.0
        """CPU seconds that collections took."""
        self._oldest = oldest
        self._before = gc.get_threshold()
        self._begun = 0.0

    def __enter__(self) -> Self:
        gc.collect()
        if self._oldest is not None:
            gc.set_threshold(*self._before[:2], self._oldest)
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._on_collection)
        gc.set_threshold(*self._before)

    def _on_collection(self, phase: str, _: dict[str, Any]) -> None:
        now = time.thread_time()
        if phase == "start":
            self._begun = now
        else:
            self.seconds += now - self._begun
