"""Run times of the calls of each atask, as their replies report them."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["NOTHING", "UNKNOWN", "RunTimes", "Work", "at_most"]

Work = tuple[float, float]
"""The expected run time of calls, in microseconds: the mean, and the square of the mean deviation."""
NOTHING: Final[Work] = (0.0, 0.0)
UNKNOWN: Final[Work] = (math.inf, 0.0)

SHORTEST_PAUSE_US: Final = 500
LONGEST_PAUSE_US: Final = 5_000
"""Microseconds up to which a run time may be no work but a pause of the worker: another process has its
processor, or it collects garbage."""
PAUSE_CALLS: Final = 16
"""After one that may have run into such a pause, so many calls count whatever they took."""
_UNKNOWABLE: Final = (math.inf, 0.0, PAUSE_CALLS)


def at_most(work: Work) -> float:
    """Return the microseconds that calls with this expected work run at most: the mean and four deviations, as
    in RFC 6298, section 2. Means of independent times add up, and so do squares of deviations."""
    mean, square = work
    return mean + 4 * math.sqrt(square)


class RunTimes:
    """The expected run time of the next call of each atask: mean and mean deviation of its run times so far,
    smoothed as TCP does with round-trip times (RFC 6298, section 2).

    One slow call counts at once, and some forty fast ones make it forgotten. But one that may have run into a
    pause does not count, if none of the `PAUSE_CALLS` before it was another such one: with dozens of calls in a
    turn of the worker's event loop pauses of its process are seen often, and would be taken for a habit of the
    calls. Of a call that awaited others the work counts that its worker has measured. Where it did not, its atask
    is unknown until the work of `PAUSE_CALLS` calls was measured: run times say nothing about it.
    """

    def __init__(self) -> None:
        self._smoothed: dict[str, tuple[float, float, int]] = {}
        """Mean, mean deviation, and for how many calls a slow one counts at once; an infinite mean: is unknown."""
        self.parking: set[str] = set()
        """Atasks of which calls awaited others."""

    def observe(self, task: str, run_us: int, parked: bool, work_us: int = 0) -> None:
        """A call of this atask has ended. `parked`: it awaited others, and did so much work; 0: its worker has not
        measured that."""
        known = self._smoothed.get(task)
        if parked:
            self.parking.add(task)
            run_us = work_us
            if not work_us:
                self._smoothed[task] = _UNKNOWABLE
                return
        if known is not None and known[0] == math.inf:
            left = known[2] - parked
            if left:
                self._smoothed[task] = (math.inf, 0.0, left)
                return
            known = None
        if known is None:
            self._smoothed[task] = (run_us, run_us / 2, 0)
            return
        mean, deviation, strict = known
        if strict:
            strict -= 1
        elif SHORTEST_PAUSE_US <= run_us <= LONGEST_PAUSE_US and run_us > mean + 4 * deviation:
            self._smoothed[task] = (mean, deviation, PAUSE_CALLS)
            return
        deviation += (abs(mean - run_us) - deviation) / 4
        self._smoothed[task] = (mean + (run_us - mean) / 8, deviation, strict)

    def expected(self, task: str) -> Work:
        """The work of one call of this atask; `UNKNOWN` where that is not known."""
        known = self._smoothed.get(task)
        if known is None:
            return UNKNOWN
        mean, deviation, _ = known
        return mean, deviation * deviation
