"""The whereabouts of a caller's calls, as the hub tells them: for `CallTimeout`, and to warn if nothing serves."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.local.messages import There
from atasks.transport.other_queues import Ask, OtherQueues
from atasks.transport.pending import Pending
from atasks.transport.unserved import Unserved
from atasks.transport.whereabouts import Whereabouts

if TYPE_CHECKING:
    from atasks.transport.backends.local.calling import Calling

__all__ = ["Lookout"]

logger = logging.getLogger("atasks.local")

LOOK_SECONDS: Final = 2.5
"""Seconds between two looks at what nothing may serve."""


class Lookout:
    """Asks the hub for calls whose deadlines are near, and now and then for one of each queue."""

    def __init__(self, calling: Calling, ask: Ask) -> None:
        self._calling = calling
        self._located: list[str] = []
        """Calls whose deadlines are near."""
        self._unserved = Unserved(logger, OtherQueues(calling.queue, ask))
        self._timer: asyncio.TimerHandle | None = None
        self.idle = True
        """True if there is nothing to look at."""

    def start(self) -> None:
        """Calls are awaited: look now and then."""
        self.idle = False
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look, context=Context())

    def stop(self) -> None:
        """Look at nothing any more."""
        self.idle = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def locate(self, pending: Pending) -> None:
        """Find out where the call is: its deadline is near. With others of this turn of the event loop."""
        if not self._located:
            asyncio.get_running_loop().call_soon(self._ask)
        self._located.append(pending.call.id)

    def _ask(self) -> None:
        located, self._located = self._located, []
        if located:
            self._calling.ask(located)

    def _look(self) -> None:
        """Ask where a call of each queue is that has been awaited for some seconds."""
        pendings, now = list(self._calling.pendings.values()), asyncio.get_running_loop().time()
        self.idle = not pendings
        if self.idle:
            return
        self.start()
        oldest: dict[str, Pending] = {}
        for pending in pendings:
            if pending.where is None or not pending.where.worker:
                oldest.setdefault(self._calling.queue_of(pending.options), pending)
            pending.since = pending.since or now
        self._located += [pending.call.id for pending in oldest.values()]
        self._ask()

    def found(self, message: There) -> None:
        """The hub says where a call is."""
        pending = self._calling.pendings.get(message.id)
        if pending is None:
            return
        queue, now = self._calling.queue_of(pending.options), asyncio.get_running_loop().time()
        if message.worker:
            pending.where = Whereabouts(
                "run", queue, message.worker, message.ran_ms / 1000, now, awaits=message.awaits
            )
        elif message.served and not message.paused:
            pending.where = Whereabouts("turn", queue, told=now, waiting=message.waiting)
        else:
            elsewhere = self._unserved.elsewhere([pending])
            pending.where = Whereabouts(
                "resume" if message.paused else "worker", queue, told=now, elsewhere=elsewhere
            )
            others = [item for item in list(self._calling.pendings.values()) if item.since]
            waiting = [item for item in others if self._calling.queue_of(item.options) == queue]
            self._unserved.see(queue, waiting, now, paused=message.paused)
