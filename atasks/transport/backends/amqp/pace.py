"""How long calls of each atask run, as their replies say."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Pace"]

DECAY: Final = 0.97
"""What an estimate keeps of itself at each reply: one slow call is forgotten after some fifty fast ones."""
FLOOR_US: Final = 15.0
"""What the cheapest call costs a worker."""


class Pace:
    """A decaying maximum of the run time of each atask, in microseconds. One that ever awaited another call has no
    finite one: its run time says nothing about the work of its next call."""

    def __init__(self) -> None:
        self._estimates: dict[str, float] = {}

    def observe(self, task: str, run_us: int, parked: bool) -> None:
        """A call of this atask has ended."""
        known = self._estimates.get(task, 0.0) * DECAY
        self._estimates[task] = math.inf if parked else max(run_us, known, FLOOR_US)

    def estimate(self, task: str) -> float:
        """Microseconds that a call of this atask is expected to run; infinite where that is not known."""
        return self._estimates.get(task, math.inf)
