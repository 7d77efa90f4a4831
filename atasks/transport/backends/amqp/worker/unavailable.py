"""Work queues that cannot be served for now: their node of a cluster is down, or they have no leader."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from atasks.errors import TransportError
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.consumer import Consumer
    from atasks.transport.backends.amqp.worker.prefetch import Prefetch
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["UnavailableQueues"]

logger = logging.getLogger("atasks.amqp")

PAUSE: Final = (0.5, 15.0)
"""Seconds before the first and, at most, before any later look at the queues."""


class UnavailableQueues:
    """Tries such queues again, until they can be served, and leaves the other queues in peace.

    Each is tried over a link of its own: RabbitMQ closes the connection of who consumes a quorum queue without a
    leader, or never answers. A queue that has recovered stays on that link until the next reconnect, when every
    queue is served over the one link of the transport again.
    """

    def __init__(
        self,
        station: Station,
        declare: Callable[[Link, str], Awaitable[list[Consumer]]],
        wanted: Callable[[str], bool],
    ) -> None:
        """`declare` makes the consumers of a queue, not started. `wanted` says whether a queue is still to be
        served."""
        self._station = station
        self._declare = declare
        self._wanted = wanted
        self._queues: set[str] = set()
        self._added = asyncio.Event()
        self._links: list[Link] = []
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, queue: str) -> bool:
        return queue in self._queues

    def add(self, queue: str, error: BaseException) -> None:
        """This queue cannot be served: leave it out from now on, and try it again."""
        if queue not in self._queues:
            reason = str(error) or "the broker does not answer"
            logger.warning("queue %r cannot be served for now, and is tried again: %s", queue, reason)
            self._queues.add(queue)
            self._added.set()

    def forgive(self) -> None:
        """Leave nothing out for now."""
        self._queues.clear()

    async def run(self) -> None:
        """Try to serve them, round after round, until cancelled."""
        while True:
            self._added.clear()
            await self._added.wait()
            waits = pauses(*PAUSE)
            while self._queues:
                await asyncio.sleep(next(waits))
                self._queues = set(filter(self._wanted, self._queues))
                for queue in sorted(self._queues):
                    window = self._station.window
                    if window is not None and window.opened and self._wanted(queue):
                        await self._try(queue, window)

    async def _try(self, queue: str, window: Prefetch) -> None:
        """Serve the queue over a link of its own, and make it one of the window's."""
        session = self._station.session
        link: Link | None = None
        try:
            link = await Link.open(session.urls, f"atasks {os.getpid()}", session.timeout)
            consumers = await self._declare(link, queue)
            for consumer in consumers if queue not in window.paused else ():
                await consumer.start(window.size(consumer))
        except (*CLIENT_ERRORS, TransportError) as error:
            logger.debug("queue %r cannot be served yet: %s", queue, error)
        else:
            if self._wanted(queue) and window.add(consumers):
                logger.warning("queue %r is served again", queue)
                self._queues.discard(queue)
                self._links.append(link)
                link.lost.add_done_callback(lambda lost: window.link.lose(lost.result()))
                link = None
        finally:
            if link is not None:
                await link.close()

    def abandon(self) -> None:
        """The link of the transport is gone: what was served beside it is served over the next one."""
        links, self._links = self._links, []
        for link in links:
            task = asyncio.create_task(link.close(), name="atasks link close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the links, after the last acknowledgement."""
        self.abandon()
        for task in list(self._closing):
            await asyncio.wait([task])
