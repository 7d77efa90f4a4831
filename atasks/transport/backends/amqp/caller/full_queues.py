"""Requests that a queue refused: it does so where it is full, and also while it has no leader."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.errors import CallConnectionLost, QueueFull
from atasks.outlast import shield
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.wire import AT_MOST_ONCE

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.caller.requests import RequestPacket
    from atasks.transport.backends.amqp.session import Session
    from atasks.transport.pending import Pending

__all__ = ["FullQueues"]

logger = logging.getLogger("atasks.amqp")

PAUSES: Final = (0.1, 0.4, 1.5)
"""Seconds before a refused request is sent again; the last one from then on."""
UNASKED: Final = 2
"""The number of refusals of a request before its queue is looked at."""
TELL_SECONDS: Final = 60.0


class FullQueues:
    """Sends refused calls again, and ends those in `QueueFull` whose queue is full.

    A full queue holds calls that are ready. One whose node of the cluster has died has none that anybody can see:
    a new leader is elected within a second or so, or when the node is back, and until then calls wait for it, to
    their deadlines. So a queue is full if it refused a call twice and had others ready both times.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._looks: dict[str, asyncio.Task[bool]] = {}
        """Queue -> whether calls are ready in it, as is just being found out."""
        self._endings: set[asyncio.Task[None]] = set()
        self._told: dict[str, float] = {}
        """Queue -> when it was last told that it refuses calls and is not full (event loop time)."""

    def refused(self, request: RequestPacket, pending: Pending) -> None:
        """The broker has refused this call of the request."""
        if pending.future.done():
            return
        refusals = request.refusals
        if refusals < UNASKED and pending.call.delivery != AT_MOST_ONCE:
            asyncio.get_running_loop().call_later(
                PAUSES[refusals], request.send_again, pending, refusals + 1, False
            )
            return
        ending = asyncio.create_task(self._decide(request, pending), name="atasks refused call")
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def close(self) -> None:
        """Every await has ended: nothing is looked at any more."""
        for task in (*self._endings, *self._looks.values()):
            task.cancel()

    async def _decide(self, request: RequestPacket, pending: Pending) -> None:
        queue, call = request.routing_key, pending.call
        look = self._looks.get(queue)
        if look is None:
            look = self._looks[queue] = asyncio.create_task(self._look(queue), name="atasks look at a queue")
        full = await shield(look)
        if full and (request.full or call.delivery == AT_MOST_ONCE):
            pending.fail(
                QueueFull(f"{call.task} was refused by the broker: its queue is full; try later, or add workers")
            )
        elif call.delivery == AT_MOST_ONCE:
            error = CallConnectionLost(
                f"{call.task} was refused by the broker, whose queue is not full (has it lost its leader?): "
                "it is not sent again, since it runs at most once"
            )
            error.waited_for = "connection"
            pending.fail(error)
        else:
            if not full:
                self._tell(queue)
            pause = PAUSES[min(request.refusals, len(PAUSES) - 1)]
            asyncio.get_running_loop().call_later(pause, request.send_again, pending, request.refusals + 1, full)

    async def _look(self, queue: str) -> bool:
        try:
            link = self._session.link
            state = None if link is None else await link.queue_state(queue)
            return state is not None and state[0] > 0
        except CLIENT_ERRORS:
            return False
        finally:
            del self._looks[queue]

    def _tell(self, queue: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told.get(queue, -TELL_SECONDS) >= TELL_SECONDS:
            self._told[queue] = now
            logger.warning(
                "queue %r refuses calls, and is not full: has it lost its leader? They are sent again until it "
                "takes them, or their deadlines pass",
                queue,
            )
