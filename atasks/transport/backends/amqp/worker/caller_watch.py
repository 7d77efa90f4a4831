"""`CallerWatch`: are the callers of the calls in hand still there?"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.worker.delivery import CallDelivery

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.server import HeldRun

__all__ = ["CANCEL", "CallerWatch"]

logger = logging.getLogger("atasks.amqp")

CANCEL: Final = 0
"""`Call.orphan`: cancel the run when its caller is gone."""
MISSING_SECONDS: Final = 1.0
"""Seconds for which a reply queue must be missing. One look is not enough: a caller whose reply queue is on a
node of a cluster that has just died takes another one, and sends again what it still awaits."""
SECONDS_A_LOOK: Final = 0.02
"""A look at a reply queue costs the broker little, but a worker may have calls of a thousand callers: the rounds
are so far apart, for each of them."""
MAX_ABSENCES: Final = 1000
"""Absent callers that are remembered. To forget one costs time only."""


class CallerWatch:
    """Cancels the runs of callers that are gone: their reply queue is missing, or had no consumer for `patience`
    seconds of connection."""

    pause = 2.0
    """Seconds between two rounds, at least."""
    patience = 30.0
    hurry = 8.0
    """Seconds of patience while the worker has no free slot. A caller that was only cut off has tried six times
    by then to connect again, and sends its calls again when it succeeds."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._absences: dict[str, _Absence] = {}
        """By reply queue."""

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        while True:
            await asyncio.sleep(max(self.pause, SECONDS_A_LOOK * len(self._callers())))
            try:
                await self._round()
            except CLIENT_ERRORS:  # the link was lost: absences seen before it do not count after it
                self.reset()

    def reset(self) -> None:
        """The connection was lost: absences begin anew."""
        self._absences.clear()

    def is_absent(self, name: str) -> bool:
        """Return True if the reply queue was missing, or without a consumer, by the last look, if that was
        lately."""
        absence = self._absences.get(name)
        return absence is not None and self._is_recent(absence)

    async def is_gone(self, name: str) -> bool:
        """Look at the reply queue: whether its caller is gone for good. Raises one of `CLIENT_ERRORS`."""
        link = self._station.link
        if link is None:
            return False
        state = await link.queue_state(name)
        if state is not None and state[1]:
            self._absences.pop(name, None)
            return False
        missing, now = state is None, asyncio.get_running_loop().time()
        absence = self._absences.get(name)
        if absence is None or absence.missing is not missing or not self._is_recent(absence):
            if len(self._absences) >= MAX_ABSENCES:
                self._absences.clear()
            absence = self._absences[name] = _Absence(missing, now)
        absence.seen = now
        patience = self.patience if self._station.worker.room > 0 else min(self.patience, self.hurry)
        return now - absence.since >= (min(MISSING_SECONDS, patience) if missing else patience)

    def _is_recent(self, absence: _Absence) -> bool:
        """Return True if the caller would have been seen, had it been there meanwhile."""
        return asyncio.get_running_loop().time() - absence.seen < 3 * self.pause + 1

    def _callers(self) -> dict[str, list[HeldRun]]:
        """Reply queue -> the runs in hand that end with their caller. One that was sent again since its caller has
        another reply queue is there under both."""
        found: dict[str, list[HeldRun]] = {}
        for run in self._station.worker.runs:
            if run.call.orphan == CANCEL:
                deliveries = (item for item in run.deliveries if isinstance(item, CallDelivery))
                for reply_to in {item.request.reply_to for item in deliveries}:
                    found.setdefault(reply_to, []).append(run)
        return found

    async def _round(self) -> None:
        absent = {name for name in self._callers() if await self.is_gone(name)}
        if absent:
            self._cancel(absent)

    def _cancel(self, absent: set[str]) -> None:
        """Cancel the runs whose reply queues are all among these. A caller that is back has another one."""
        watched = self._callers()
        elsewhere = {run.call.id for name, runs in watched.items() if name not in absent for run in runs}
        found = {run.call.id: run for name in absent for run in watched.get(name, [])}
        runs = [run for call_id, run in found.items() if call_id not in elsewhere]
        if runs:
            logger.warning("a caller is gone: %d of its calls are cancelled", len(runs))
            for run in runs:
                self._station.worker.cancel(run.call.id)


class _Absence:
    """A caller that is not there."""

    __slots__ = ("missing", "seen", "since")

    def __init__(self, missing: bool, now: float) -> None:
        self.missing = missing
        """True if its reply queue is missing too."""
        self.since = self.seen = now
        """When that was seen first, and last (event loop time)."""
