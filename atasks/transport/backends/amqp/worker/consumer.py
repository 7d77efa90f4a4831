"""The consumer of one queue, and its window."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiormq.abc import ConsumerCallback
from aiormq.exceptions import AMQPChannelError, ConnectionInternalError

from atasks.options import Executor
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import answered, guard, shielded

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.events import EventSource

__all__ = ["Consumer", "Wait"]


class Consumer:
    """The live consumer of one queue over one link, and how much of its window is in use."""

    def __init__(
        self,
        link: Link,
        acks: Acks,
        queue: str,
        name: str,
        full_size: int,
        *,
        solo: bool = False,
        executor: Executor | None = None,
        source: EventSource | None = None,
        receive: Callable[[Consumer], ConsumerCallback],
        unavailable: Callable[[str, BaseException], None],
        patience: float,
    ) -> None:
        """`receive(self)` makes what is called with each message. `unavailable(queue, error)` is called where the
        queue cannot be consumed for now, or is not within `patience` seconds."""
        self.acks = acks
        """Acknowledgements on the channel of its deliveries."""
        self.queue = queue
        self.solo = solo
        """True for the queue of last attempts, which run alone."""
        self.executor: Executor | None = executor
        """If its calls wait for places in a pool: in which."""
        self.source = source
        """If events come by it: whom they are for."""
        self.name = name
        """The broker's name of the queue."""
        self.full_size = full_size
        self.prefetch = full_size
        self.waiting = 0
        """Calls of this worker that waited for tokens of limits when it started."""
        self.unfinished = 0
        """Messages of the live consumer whose calls have not all ended: each counts itself."""
        self.claims = 0
        """Calls from it that wait for the word of their callers: see `Wait`."""
        self.away = 0
        """Claims whose caller is slow to answer, and calls that other workers are being asked about."""
        self.adopted = 0
        """Messages of the live consumer with calls that this worker ran already, since before a reconnect."""
        self.generation = 0
        self.running = False
        """True if the broker sends to it, or is about to: messages may come before it is known that it does."""
        self._link = link
        self._receive = receive
        self._unavailable = unavailable
        self._patience = patience
        self._tag = ""
        self._starting = asyncio.Lock()

    @property
    def has_room(self) -> bool:
        """Return True if its window is that of its slots, and not full: the broker sends what there is."""
        return self.running and self.unfinished < self.prefetch == self.full_size

    async def start(self, prefetch: int, waiting: int = 0) -> None:
        """Consume with this window, while so many calls of the worker wait for tokens of limits. Where the queue
        cannot be consumed the link is of no use afterwards: the broker has closed the connection, or its channel
        waits for an answer."""
        self.running = True
        self.generation += 1
        self.unfinished = 0
        self.adopted = 0
        self.prefetch = max(1, prefetch)
        self.waiting = waiting
        try:
            async with self._starting, answered(f"consume queue {self.name!r}", self._patience):
                self._tag = await self._link.consume_work(self.name, self._receive(self), self.prefetch)
        except BaseException as error:
            self.running = False
            self._tag = ""
            if isinstance(error, (AMQPChannelError, ConnectionInternalError, TimeoutError)):
                self._unavailable(self.queue, error)
            raise

    async def stop(self) -> None:
        """Wait for the broker's word: a cancel that does not would drop deliveries under way."""
        if self.running:
            self.running = False
            async with self._starting:
                tag, self._tag = self._tag, ""
                if tag:
                    await guard(shielded(self._link.work.basic_cancel(tag)))

    def adopt(self) -> None:
        """A message has come with a call that this worker runs already."""
        self.adopted += 1


class Wait:
    """A call that waits for somebody's word before it starts. It counts as one that is about to, until it is put
    aside: others need not wait for it then."""

    __slots__ = ("_consumer", "aside")

    def __init__(self, consumer: Consumer, *, aside: bool = False) -> None:
        self._consumer = consumer
        self.aside = aside
        self._count(1)

    def put_aside(self) -> None:
        """Stop counting: the caller is slow to answer, or gone. Safe to call again."""
        self._count(-1)
        self.aside = True
        self._count(1)

    def move(self, consumer: Consumer) -> None:
        """Count against this consumer: the copy has come by it meanwhile."""
        self._count(-1)
        self._consumer = consumer
        self._count(1)

    def end(self) -> None:
        """Stop waiting."""
        self._count(-1)

    def _count(self, change: int) -> None:
        if self.aside:
            self._consumer.away += change
        else:
            self._consumer.claims += change
