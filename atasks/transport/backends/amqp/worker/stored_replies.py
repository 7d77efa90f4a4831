"""The ends of submitted calls, written to the database that has their records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from atasks.errands import Errands
from atasks.errors import NotConnected, RecordsUnavailable
from atasks.transport.backends.amqp.broker.delays import declare_levels, level_of
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.wire import Call, End, Reply

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.worker.delivery import CallDelivery
    from atasks.transport.backends.amqp.worker.replies import Replies
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage

__all__ = ["MissingStore", "Store", "StoredReplies"]

logger = logging.getLogger("atasks.records")

PAUSE: Final = 1.0
"""Seconds between two attempts to write what the database has refused, or to delay a call."""
LATER: Final = 1 << 7
"""Ticks, of 0.1 s, after which a call comes again that this worker leaves to others."""
REMIND_SECONDS: Final = 60.0


class Store(Protocol):
    """A database of records, as a worker needs it."""

    async def finish(self, reply: Reply, key: str | None) -> None:
        """Keep the reply that ends a call, under the seal of that key, and return when it is safe; or when there
        is no record of the call. Raises RecordsUnavailable if it is refused, NotConnected."""

    async def has_ended(self, call: Call, *, patient: bool) -> bool:
        """Return True if the record says that the call has ended. `patient`: wait for the database; else False
        while it is away."""
        ...

    async def hold(self, call: Call) -> tuple[bool, float]:
        """Use the record of a call in hand. Returns True if it says that the call has ended, and for how many
        seconds it is kept. Raises RecordsUnavailable."""
        ...


class StoredReplies:
    """Writes replies, and settles what their calls came by when they are committed.

    While the database is away the replies wait here, and their requests stay unacknowledged: so there are at most
    as many as the window of the worker has calls, and the broker has each call still.
    """

    def __init__(self, store: Store, conclude: Callable[[str, RequestMessage | None], None]) -> None:
        """`conclude` is called with the id of each call whose reply is safe, and what it came by."""
        self._store = store
        self._conclude = conclude
        self._writes = Errands("atasks reply")

    def put(self, answers: Sequence[tuple[Reply | End, RequestMessage | None]], key: str | None) -> None:
        """Write them. Never waits."""
        for reply, request in answers:
            if isinstance(reply, Reply):
                self._writes.start(self._write(reply, request, key))

    async def finished(self) -> None:
        """Return when nothing is to be written any more."""
        await self._writes.ended()

    async def close(self) -> None:
        """Write nothing more: the broker has the calls, and gives them to other workers."""
        await self._writes.cancel()

    async def _write(self, reply: Reply, request: RequestMessage | None, key: str | None) -> None:
        while True:
            try:
                await self._store.finish(reply, key)
            except RecordsUnavailable as error:
                logger.error("the end of call %s cannot be written, and waits here: %s", reply.id, error)
                await asyncio.sleep(PAUSE)
            except NotConnected:  # the worker ends
                return
            else:
                self._conclude(reply.id, request)
                if request is not None:
                    request.settled()
                return


class MissingStore:
    """Leaves calls whose records are in a database to workers that know one: this one does not.

    Each goes to the queues of what is delayed for a while, and not back at once: so it neither spins between
    workers, nor waits here in the place of calls that this worker can run.
    """

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._link: Link | None = None
        """The one over which the levels were declared."""
        self._lock = asyncio.Lock()
        self._errands = Errands("atasks call for a database")
        self._told = -REMIND_SECONDS

    def leave(self, call: Call, delivery: CallDelivery) -> None:
        """Have the call come again later, to whoever is there then."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._told + REMIND_SECONDS:
            self._told = loop.time()
            logger.error(
                "calls on queue %r have records in a database, and this worker knows none: it leaves them to "
                "others, so start it with records=, --records or $ATASKS_RECORDS",
                delivery.queue,
            )
        link = self._replies.station.link
        if link is not None and link is self._link:
            delivery.postpone(call, LATER)
        else:
            self._errands.start(self._leave(call, delivery, link))

    async def close(self) -> None:
        """Leave nothing more: the broker has the calls."""
        await self._errands.cancel()

    async def _leave(self, call: Call, delivery: CallDelivery, link: Link | None) -> None:
        try:
            async with self._lock:
                if link is not None and link is not self._link:
                    await declare_levels(link, self._replies.station.session.topology, level_of(LATER))
                    self._link = link
        except CLIENT_ERRORS as error:
            logger.warning("a call cannot be delayed, and goes back to its queue: %s", error)
            await asyncio.sleep(PAUSE)
            delivery.give_back(call)
        else:
            delivery.postpone(call, LATER)
