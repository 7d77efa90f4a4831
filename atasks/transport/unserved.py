"""Queues that nothing serves: the error of calls that do not wait, and warnings while others do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from atasks.commands import worker_command
from atasks.errors import NoWorker
from atasks.wire import counted

if TYPE_CHECKING:
    from atasks.transport.other_queues import OtherQueues
    from atasks.transport.pending import Pending

__all__ = ["AGAIN_SECONDS", "WARN_SECONDS", "Unserved", "no_worker"]

WARN_SECONDS: Final = 5.0
"""Seconds that calls wait for a worker before the log says so."""
AGAIN_SECONDS: Final = 60.0
"""Seconds between two warnings of one queue."""
GAP_SECONDS: Final = 10.0
"""Seconds after which calls that wait are others than those that were seen before: a worker came, or their end."""
MAX_QUEUES: Final = 1000
UNSERVED: Final = (
    "nothing serves queue %r: %s waited for a worker, %s for %.0f s; start one for it "
    "(%s), or give calls a timeout%s"
)
PAUSED: Final = "queue %r is paused: %s until it is resumed (atasks resume QUEUE), %s for %.0f s"


class Unserved:
    """Warns of each queue once, and again each minute, with how many calls of this process wait in it."""

    def __init__(self, logger: logging.Logger, others: OtherQueues | None = None) -> None:
        """`others` looks for workers of other queues; None: there are none."""
        self._logger = logger
        self._others = others
        self._seen: dict[str, tuple[float, float, float]] = {}
        """Queue -> when it was seen unserved first, and last, and when that was said (event loop time)."""

    def see(self, queue: str, pendings: Sequence[Pending], now: float, *, paused: bool = False) -> None:
        """Nothing serves the queue, or it is paused, and these calls wait for it. Call it every few seconds while
        that is so."""
        if self._others is not None and not paused:
            self._others.look(pendings, now)
        first, last, said = self._seen.get(queue, (now, now, 0.0))
        if now - last > GAP_SECONDS:
            first = now
        if now - last > AGAIN_SECONDS:
            said = 0.0
        sent = [pending.since for pending in pendings if pending.since > 0]  # else not sent yet, or suspected
        waited = now - min([first, *sent])
        if pendings and waited >= WARN_SECONDS and (not said or now - said >= AGAIN_SECONDS):
            said, is_one = now, len(pendings) == 1
            calls, some = counted(len(pendings), "call"), "now" if is_one else "some"
            if paused:
                self._logger.warning(PAUSED, queue, calls + (" waits" if is_one else " wait"), some, waited)
            else:
                have, elsewhere = calls + (" has" if is_one else " have"), self.elsewhere(pendings)
                self._logger.warning(UNSERVED, queue, have, some, waited, worker_command(), elsewhere)
        if len(self._seen) >= MAX_QUEUES:
            self._seen.clear()
        self._seen[queue] = first, now, said

    def elsewhere(self, pendings: Sequence[Pending]) -> str:
        """Say which worker of another queue serves the atask of one of these calls; or nothing."""
        return "" if self._others is None else self._others.hint(pendings)


def no_worker(queue: str, *, paused: bool = False) -> NoWorker:
    """The error of a call that does not wait for a worker, or for the end of a pause."""
    if paused:
        return NoWorker(f"queue {queue!r} is paused: resume it (atasks resume {queue})")
    return NoWorker(f"nothing serves queue {queue!r}: start a worker ({worker_command()})")
