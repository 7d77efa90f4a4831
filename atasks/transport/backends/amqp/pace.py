"""How long calls of each atask run, as their replies say."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Pace"]

FLOOR_US: Final = 15.0
"""What the cheapest call costs a worker."""
_UNKNOWABLE: Final = (math.inf, math.inf, math.inf)


class Pace:
    """What the next call of each atask is expected to run at most, in microseconds: the mean of its run times and
    four times their mean deviation, both smoothed as TCP does with round-trip times (RFC 6298, section 2).

    One slow call raises the estimate at once; some forty fast ones after it bring it down again, so that a pause
    of the worker (a garbage collection, another process) is soon forgotten. An atask that ever awaited another
    call has no finite estimate: its run time says nothing about the work of its next call.
    """

    def __init__(self) -> None:
        self._smoothed: dict[str, tuple[float, float, float]] = {}
        """Mean, mean deviation, and the estimate."""

    def observe(self, task: str, run_us: int, parked: bool) -> None:
        """A call of this atask has ended."""
        known = self._smoothed.get(task)
        if parked or known is _UNKNOWABLE:
            self._smoothed[task] = _UNKNOWABLE
            return
        if known is None:
            mean, deviation = float(run_us), run_us / 2
        else:
            mean, deviation, _ = known
            deviation += (abs(mean - run_us) - deviation) / 4
            mean += (run_us - mean) / 8
        self._smoothed[task] = (mean, deviation, max(mean + 4 * deviation, FLOOR_US))

    def estimate(self, task: str) -> float:
        """Microseconds that a call of this atask is expected to run; infinite where that is not known."""
        known = self._smoothed.get(task)
        return math.inf if known is None else known[2]
