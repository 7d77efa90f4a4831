"""Whether the callers of the calls in hand are still there."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.link import CLIENT_ERRORS

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.intake import Intake

__all__ = ["CANCEL", "CallerWatch"]

logger = logging.getLogger("atasks.amqp")

CANCEL: Final = 0
"""`Call.orphan`: cancel the run when its caller is gone."""


class CallerWatch:
    """Cancels the runs of callers that are gone: their reply queue was missing in two rounds, or had no consumer
    for `patience` seconds of connection. One round is not enough: a caller whose reply queue is on a node of a
    cluster that has just died takes another one, and sends again what it still awaits."""

    pause = 10.0
    patience = 30.0

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._away_since: dict[str, float] = {}
        self._missing: set[str] = set()

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        while True:
            await asyncio.sleep(self.pause)
            try:
                await self._round()
            except CLIENT_ERRORS:  # the link went: what was seen before does not count after
                self.reset()

    def reset(self) -> None:
        """The connection was lost: absences begin anew."""
        self._away_since.clear()
        self._missing.clear()

    async def _round(self) -> None:
        link = self._intake.link
        if link is None:
            return
        watched = self._intake.callers(CANCEL)
        self._away_since = {name: since for name, since in self._away_since.items() if name in watched}
        missing, self._missing = self._missing, set()
        absent: set[str] = set()
        now = asyncio.get_running_loop().time()
        for name in watched:
            state = await link.queue_state(name)
            if state is None:
                self._missing.add(name)
                gone = name in missing
            elif state[1]:
                self._away_since.pop(name, None)
                gone = False
            else:
                gone = now - self._away_since.setdefault(name, now) >= self.patience
            if gone:
                absent.add(name)
        if absent:
            self._cancel(absent)

    def _cancel(self, absent: set[str]) -> None:
        """Cancel the runs whose reply queues are all among these. A caller that is back has another one."""
        watched = self._intake.callers(CANCEL)
        elsewhere = {run.call.id for name, runs in watched.items() if name not in absent for run in runs}
        found = {run.call.id: run for name in absent for run in watched.get(name, [])}
        runs = [run for call_id, run in found.items() if call_id not in elsewhere]
        if runs:
            logger.warning("a caller is gone: %d of its calls are cancelled", len(runs))
            for run in runs:
                run.worker.cancel(run.call.id)
