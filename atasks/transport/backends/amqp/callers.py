"""Whether the callers of the calls in hand are still there."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.link import CLIENT_ERRORS

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.intake import Intake

__all__ = ["CallerWatch"]

logger = logging.getLogger("atasks.amqp")

CANCEL: Final = 0
"""`Call.orphan`: cancel the run when its caller is gone."""


class CallerWatch:
    """Cancels the runs of callers that are gone: their reply queue is missing, or had no consumer for `patience`
    seconds of connection. A caller that comes back later sends again what it still awaits."""

    pause = 10.0
    patience = 30.0

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._away_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        while True:
            await asyncio.sleep(self.pause)
            try:
                await self._round()
            except CLIENT_ERRORS:  # the link went: what was seen before does not count after
                self._away_since.clear()

    def reset(self) -> None:
        """The connection was lost: absences begin anew."""
        self._away_since.clear()

    async def _round(self) -> None:
        link = self._intake.link
        if link is None:
            return
        watched = self._intake.callers(CANCEL)
        self._away_since = {name: since for name, since in self._away_since.items() if name in watched}
        now = asyncio.get_running_loop().time()
        for name, runs in watched.items():
            state = await link.queue_state(name)
            if state is not None and state[1]:
                self._away_since.pop(name, None)
            elif state is None or now - self._away_since.setdefault(name, now) >= self.patience:
                logger.warning("a caller is gone: %d of its calls are cancelled", len(runs))
                for run in runs:
                    run.worker.cancel(run.call.id)
