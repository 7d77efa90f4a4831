"""The consumer of one queue, and its window."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPChannelError, ConnectionInternalError

from atasks.options import Executor
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.link import Link, guard, shielded
from atasks.transport.backends.amqp.seals import opening

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.serving import Serving

__all__ = ["Consumer"]

logger = logging.getLogger("atasks.amqp")


class Consumer:
    """The live consumer of one queue over one link, and how much of its window is in use."""

    def __init__(
        self,
        intake: Serving,
        link: Link,
        acks: Acks,
        queue: str,
        name: str,
        full_size: int,
        *,
        solo: bool = False,
        executor: Executor | None = None,
    ) -> None:
        self.intake = intake
        self.acks = acks
        """Of the channel of its deliveries."""
        self.queue = queue
        self.solo = solo
        """Whether it is the queue of last attempts, which run alone."""
        self.executor: Executor | None = executor
        """If its calls wait for places in a pool: in which."""
        self.name = name
        """The broker's name of the queue."""
        self.full_size = full_size
        self.prefetch = full_size
        self.unfinished = 0
        """Messages of the live consumer whose calls have not all ended."""
        self.claims = 0
        """Calls from it that wait for the word of their callers."""
        self.away = 0
        """The same, of callers that are slow to answer; and calls that may be lost: workers are asked for them."""
        self.adopted = 0
        """Messages of the live consumer with calls that this worker ran already, since before a reconnect."""
        self.generation = 0
        self.running = False
        """Whether the broker sends to it, or is about to: messages may come before it is known that it does."""
        self._link = link
        self._tag = ""
        self._starting = asyncio.Lock()

    async def start(self, prefetch: int) -> None:
        """Consume with this window. Where the queue cannot be consumed the link is of no use afterwards: the
        broker has closed the connection, or its channel waits for an answer."""
        self.running = True
        self.generation += 1
        self.unfinished = 0
        self.adopted = 0
        self.prefetch = max(1, prefetch)
        try:
            async with self._starting, asyncio.timeout(self.intake.transport.timeout / 2):
                place = self.intake.transport.topology.place("", self.name)
                receive = opening(
                    self.intake.transport.seals, self._on_message, lambda _: place, self._dead_letter
                )
                self._tag = await self._link.consume_work(self.name, receive, self.prefetch)
        except BaseException as error:
            self.running = False
            self._tag = ""
            refused = self.intake.serving and isinstance(error, AMQPChannelError)  # who begins is told
            if refused or isinstance(error, (ConnectionInternalError, TimeoutError)):
                self.intake.ailing.add(self.queue, error)
            raise

    async def stop(self) -> None:
        """Wait for the broker's word: a cancel that does not would drop deliveries under way."""
        if self.running:
            self.running = False
            async with self._starting:
                tag, self._tag = self._tag, ""
                if tag:
                    await guard(shielded(self._link.work.basic_cancel(tag)))

    def _dead_letter(self, message: DeliveredMessage) -> None:
        self.intake.dead_letter(message, self.acks, self.name)

    async def _on_message(self, message: DeliveredMessage) -> None:
        try:
            await self.intake.receive(self, message)
        except Exception:
            logger.exception("a request could not be served")
            self.intake.fail(self, message)
