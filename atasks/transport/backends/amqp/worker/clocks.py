"""By how much the clocks of callers differ from this worker's."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from typing import Final

__all__ = ["Clocks"]

logger = logging.getLogger("atasks.amqp")

MAX_CALLERS: Final = 10_000
LARGE_MS: Final = 2000.0
"""A difference that is told of."""
CLOSE_MS: Final = 100.0
"""The most milliseconds by which a measured difference of clocks may be wrong."""
NEVER_MS: Final = 1000.0
"""No clock shows the first second of 1970: who writes that means that it is long ago."""
TELL_SECONDS: Final = 60.0


class Clocks:
    """Measures the clocks of callers by their answers to claims, which say what time it is there.

    A caller is asked about any call that seems to have been sent some seconds ago, or to come from the future; so
    nothing is exchanged to measure clocks. What is not measured is not relied on.
    """

    def __init__(self) -> None:
        self._ahead: OrderedDict[str, float] = OrderedDict()
        """Reply queue -> by how many milliseconds this worker's clock is ahead of its caller's, at most."""
        self._told = -math.inf

    def ahead(self, reply_to: str) -> float:
        """By how many milliseconds this clock is ahead of that caller's; 0: they agree, or were not compared."""
        ahead = self._ahead.get(reply_to, 0.0)
        return ahead if abs(ahead) > LARGE_MS else 0.0

    def waited(self, reply_to: str, sent_ms: float) -> float:
        """For how many seconds a call that was sent then has been under way for certain."""
        ahead = 0.0 if 0 < sent_ms < NEVER_MS else self._ahead.get(reply_to)
        if ahead is None:
            return 0.0
        return max(time.time() * 1000 - sent_ms - ahead - CLOSE_MS, 0.0) / 1000

    def learn(self, reply_to: str, now_ms: int, asked: float | None = None) -> None:
        """A caller that was asked `asked` seconds ago, or later, has answered at `now_ms` by its own clock; 0: an
        older version does not say."""
        if not now_ms:
            return
        here = time.time() * 1000
        most, known = here - now_ms, self._ahead.get(reply_to)  # an answer takes its time
        if known is not None and known <= most and (asked is None or known >= most - asked * 1000):
            return
        self._ahead[reply_to] = most
        self._ahead.move_to_end(reply_to)
        if len(self._ahead) > MAX_CALLERS:
            self._ahead.popitem(last=False)
        if abs(most) > LARGE_MS and (known is None or abs(most - known) > LARGE_MS):
            self._tell(most)

    def _tell(self, ahead: float) -> None:
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            logger.warning(
                "the clock of this worker is %.1f s %s that of a caller: deadlines allow for "
                "that; set both clocks right",
                abs(ahead) / 1000,
                "ahead of" if ahead > 0 else "behind",
            )
