"""Orders to queues at the broker: pause, resume, purge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from atasks import wire
from atasks.errors import DecodeError, NotConnected
from atasks.signing import SealError
from atasks.tracking.steering import Purged
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import close_quietly, guard, shielded
from atasks.transport.backends.amqp.seals import UNSEALED, Opened, content_type
from atasks.transport.backends.amqp.worker.dead_letters import DeadLetter
from atasks.transport.records.contract import base_of
from atasks.wire import CONTENT_TYPE, Call, Reply

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.caller.control import ControlMessages
    from atasks.transport.backends.amqp.session import Session
    from atasks.transport.backends.amqp.worker.stored_replies import Store

__all__ = ["Steering"]

AT_ONCE: Final = 200
"""Messages whose callers are being told at a time."""


class Steering:
    """Pauses, resumes and purges queues, for who is connected to their broker."""

    def __init__(self, session: Session, control: ControlMessages, store: Store | None = None) -> None:
        self._session = session
        self._control = control
        self._store = store
        self._numbers = 0

    def link(self) -> Link:
        """The connection to the broker. Raises NotConnected."""
        if self._session.link is None:
            raise NotConnected("the connection is lost just now, or there never was one: try again")
        return self._session.link

    async def pause(self, queue: str) -> None:
        """Mark the queue as paused. Raises a TransportError."""
        topology = self._session.topology
        name = topology.paused(topology.check(queue))
        try:
            await self.link().declare_queue(name, topology.paused_arguments())
        except CLIENT_ERRORS as error:
            raise map_error(error, self._session.urls[0]) from error

    async def resume(self, queue: str) -> None:
        """Remove the mark. Raises a TransportError."""
        topology = self._session.topology
        try:
            await self.link().delete_queue(topology.paused(topology.check(queue)))
        except CLIENT_ERRORS as error:
            raise map_error(error, self._session.urls[0]) from error

    async def paused(self, queues: Sequence[str]) -> list[str]:
        """Return those of the queues that are marked."""
        link, topology = self.link(), self._session.topology
        try:
            return [queue for queue in queues if await link.queue_state(topology.paused(queue)) is not None]
        except CLIENT_ERRORS as error:
            raise map_error(error, self._session.urls[0]) from error

    async def dead_count(self) -> int:
        """Return the number of messages in the dead queue."""
        try:
            state = await self.link().queue_state(self._session.topology.dead)
        except CLIENT_ERRORS as error:
            raise map_error(error, self._session.urls[0]) from error
        return 0 if state is None else state[0]

    async def purge(self, queue: str) -> Purged:
        """End the calls that wait in the queue and in those beside it, as many as there are now.

        A message leaves its queue when its callers have been told, or the broker has that word safe. Where the
        connection is lost in between, the callers hear it twice, which is no harm.
        """
        topology, found = self._session.topology, Purged(known=False)
        topology.check(queue)
        link = self.link()
        try:
            for name in topology.all(queue):
                state = await link.queue_state(name)
                found.known |= state is not None
                if state is not None and state[0]:
                    await self._purge(link, queue, name, state[0], found)
            self._control.flush()
        except CLIENT_ERRORS as error:
            raise map_error(error, self._session.urls[0]) from error
        return found

    async def _purge(self, link: Link, queue: str, name: str, count: int, found: Purged) -> None:
        channel = await link.open_channel()
        try:
            acks = Acks(channel)
            telling: set[asyncio.Task[None]] = set()
            for _ in range(count):
                got = await guard(shielded(channel.basic_get(name)))
                if not isinstance(got.delivery, Basic.GetOk):
                    break
                telling.add(asyncio.create_task(self._end(link, queue, name, got, acks, found)))
                if len(telling) >= AT_ONCE:
                    done, telling = await asyncio.wait(telling, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            if telling:
                await asyncio.gather(*telling)
            await self._session.outbox.flushed()
            await acks.flushed()
        finally:  # messages that were neither acknowledged nor given back are in the queue again
            await close_quietly(channel)

    async def _end(
        self, link: Link, queue: str, name: str, message: DeliveredMessage, acks: Acks, found: Purged
    ) -> None:
        """Answer the calls of one message, and take it from its queue."""
        session, topology, tag = self._session, self._session.topology, message.delivery_tag or 0
        try:
            if session.seals is not None:
                message = session.seals.open(message, topology.arrival(name)(message), remember=False)
            calls = _calls(message, session.max_message)
        except SealError:
            found.left += 1
            acks.requeue(tag)
            return
        except DecodeError:
            dead = DeadLetter(message, acks, name, topology.dead, self._number())
            session.outbox.put(dead)
            found.unreadable += 1
            return
        reply_to, key = message.header.properties.reply_to or "", _owner(message, calls)
        if reply_to == topology.stored:
            if self._store is None:  # nobody could be told
                found.left += 1
                acks.requeue(tag)
                return
            for call in calls:
                await self._store.finish(wire.purged(call, queue), key)
        elif reply_to not in (topology.nobody, topology.events, ""):
            replies = [wire.purged(call, queue) for call in calls]
            properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=self._number(), delivery_mode=2)
            answer = _Answer(replies, *topology.way(reply_to, properties), properties, key)
            session.outbox.put(answer)
            if not await answer.told:
                found.left += 1
                acks.requeue(tag)
                return
        for call in calls:
            if topology.is_kept(reply_to) and base_of(call.id) is not None:
                await link.delete_queue(topology.unique(call.id))
            if message.redelivered or call.attempt > 1:  # a worker may have it in hand
                self._control.cancel(queue, call.id, key)
        found.calls += len(calls)
        acks.ack(tag)

    def _number(self) -> str:
        self._numbers += 1
        return f"purge-{self._session.reply_queue.rpartition('.')[2]}-{self._numbers:x}"


def _calls(message: DeliveredMessage, limit: int) -> list[Call]:
    """Return the calls of a message that have not ended. Raises DecodeError if there is anything else in it."""
    if content_type(message) != CONTENT_TYPE:
        raise DecodeError("the content type is another one")
    calls = [item for item in wire.decode(message.body, limit) if isinstance(item, Call)]
    if not calls:
        raise DecodeError("there is no call in it")
    return calls


def _owner(message: DeliveredMessage, calls: list[Call]) -> str | None:
    """Return the key under which those who made the calls are answered."""
    if not isinstance(message, Opened):
        return UNSEALED
    return calls[0].by if calls[0].by and message.key.serve else message.key.name


class _Answer(Outgoing):
    """The endings of the calls of one message, on their way to who made them."""

    __slots__ = ("told",)

    def __init__(
        self, replies: list[Reply], exchange: str, routing_key: str, properties: Basic.Properties, key: str | None
    ) -> None:
        super().__init__(wire.encode(replies), routing_key, properties, exchange=exchange, key=key)
        self.told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True if the callers will hear of it, or are gone."""

    def confirmed(self) -> None:
        self._tell(True)

    returned = confirmed

    def refused(self) -> None:
        self._tell(False)

    def rejected(self, refusal: object) -> None:
        self._tell(False)

    def lost(self) -> bool:
        self._tell(False)
        return False

    def _tell(self, told: bool) -> None:
        if not self.told.done():
            self.told.set_result(told)
