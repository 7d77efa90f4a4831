"""Keeping what becomes of calls at the broker: a queue for each, which is read without being consumed.

The messages of a record's queue: the call, behind a `Kept`, and then replies. Replies are published to the control
exchange, so that they reach the record and, in the same step, everyone who waits for them. Those who are told so
read the record again: what the queue holds, in its order, is the only truth.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from atasks import wire
from atasks.current import serving
from atasks.errors import (
    AtasksError,
    CallRefused,
    DecodeError,
    QueueFull,
    QueueMismatch,
    UnknownRun,
)
from atasks.options import LONGEST_KEEP, TaskOptions
from atasks.signing import SealError
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, differing
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.pursuits import Pursuits
from atasks.transport.backends.amqp.record_message import RecordMessage
from atasks.transport.backends.amqp.record_reader import RecordReader
from atasks.transport.backends.amqp.seals import key_of
from atasks.transport.journals import Entries
from atasks.transport.records.contract import GENERATION, Record, Records, base_of, record_of, unknown_run
from atasks.wire import CONTENT_TYPE, VERSION, Call, Kept, Reply, Sent

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["AMQPRecords"]

logger = logging.getLogger("atasks.amqp")

MAX_OWNERS: Final = 10_000
LEAST_MS: Final = 1000
"""For so long a record stays at least: its queue must not expire between its declaration and its first use."""
MAX_TIMES: Final = 10
"""Others that want a key may declare its record anew so often, while it is found out whether that is one."""
HOLDER_SECONDS: Final = 3.0
"""Seconds in which a call that has the same key gets its record, if it gets one: many submit at once."""
HOLDER_PAUSE: Final = 0.05
"""Seconds until the second look for that record; the pauses between later ones double."""


class Sender(Protocol):
    """The part of a transport that sends the calls of records."""

    async def require_worker(self, queue: str) -> None:
        """Raise NoWorker unless something serves the queue."""

    async def hand_over(self, call: Call, options: TaskOptions, *, address: str = "", delay: float = 0.0) -> None:
        """Return when the request of a call is safe that nobody awaits, and whose replies go to this address."""

    def withdraw(self, queue: str, call_id: str, key: str | None) -> None:
        """Tell the workers of the queue that a call need not run any more."""


class AMQPRecords(Records):
    """The records of one namespace at the broker. What is begun over one link goes on over the next one."""

    unlisted = (
        "each record at the broker is a queue of its own, PREFIX.run.NAMESPACE.ID, and AMQP lists no queues, as "
        "`rabbitmqctl list_queues` does"
    )

    def __init__(self, session: Session, sender: Sender, expires: float) -> None:
        super().__init__(expires)
        self._session = session
        self._links = session.links
        self._sender = sender
        self._watches: dict[str, tuple[asyncio.Event, ...]] = {}
        """Routing key -> those to be told of what is published by it."""
        self._reader = RecordReader(session)
        self._adding = asyncio.Lock()
        """Has what is added at the same time be kept in that order."""
        self._numbers = 0
        self.pursuits = Pursuits(session, self.owner)
        self._owners: dict[str, str] = {}
        """Call -> whose key its record is sealed with, of the records that were used last."""

    # -- the connection

    async def restore(self, link: Link) -> None:
        """Listen over a new link to what is waited for."""
        for key in list(self._watches):
            await self._bind(link, key)

    def wake_all(self) -> None:
        """Tell all who wait: what was published while there was no link may have been missed."""
        for events in self._watches.values():
            for event in events:
                event.set()

    def close(self) -> None:
        """There will be no other link."""
        self.wake_all()
        self.pursuits.close()

    # -- the contract

    async def begin(self, call: Call, options: TaskOptions, *, delay: float = 0.0, named: str = "") -> str:
        session, sender = self._session, self._sender
        topology = session.topology
        queue = topology.check(session.queue_of(options))
        if options.on_no_worker == "error":
            await sender.require_worker(queue)
        milliseconds = self.milliseconds(options, delay)
        if milliseconds > LONGEST_KEEP * 1000:
            raise ValueError(
                f"keep= and delay= are {milliseconds // 1000} seconds together, and RabbitMQ can keep a record "
                f"for {LONGEST_KEEP:.0f}: say keep=0, or a shorter one, or keep records in a database"
            )
        is_unique, since = base_of(call.id) is not None, time.monotonic()
        if is_unique and (holder := await self._holder(call.id, delay, milliseconds > 0)) is not None:
            return holder
        may_drop = milliseconds > 0
        try:
            address = topology.nobody
            if milliseconds:
                written = await self._open(call, queue, max(milliseconds, LEAST_MS), is_unique)
                if is_unique and not (written and time.monotonic() - since <= HOLDER_SECONDS / 3):
                    # One of those who want the key may have taken another one for dead: the first call counts.
                    may_drop = False
                    self._owners.pop(call.id, None)
                    first = await self.read(call.id, any_generation=True)
                    if first.id != call.id:
                        self.see_to(first)
                        return first.id
                    may_drop = True
                address = topology.kept(call.id)
            await sender.hand_over(call, options, address=address, delay=delay)
        except BaseException as error:
            if is_unique:
                await self._let_go(call.id)
            if isinstance(error, QueueMismatch) and is_unique:
                may_drop = False  # another one has declared the record
            if may_drop and not isinstance(error, asyncio.CancelledError):  # else it may have been sent
                with suppress(AtasksError):
                    await self.drop(call.id)
            raise
        return call.id

    async def _open(self, call: Call, queue: str, milliseconds: int, is_unique: bool) -> bool:
        """Open a record for the call. One that is there with another time, and empty, is that of a submitter with
        the same `unique` key which has died. False, and nothing is written, if another call is in it."""
        session, topology = self._session, self._session.topology
        name = topology.kept(call.id)
        keys = (name, topology.kept_steps(call.id))
        arguments = topology.kept_arguments(milliseconds)
        pause = HOLDER_PAUSE

        async def declare(link: Link) -> bool:
            try:
                await link.declare_queue(name, arguments, topology.control, keys)
            except ChannelNotFoundEntity:  # another one that wants the key has deleted it before it was bound
                if not is_unique or pause >= HOLDER_SECONDS:
                    raise
                return False
            return True

        while True:
            try:
                if await self._links.do(declare):
                    break
            except QueueMismatch as error:
                if not is_unique or pause >= HOLDER_SECONDS or not await self._is_record(name, error):
                    raise
            await self._links.do(lambda link: link.delete_queue(name, if_empty=True))
            state = await self._links.do(lambda link: link.queue_state(name))
            if state is not None and state[0]:
                return False
            if state is not None:  # somebody looks into it
                await asyncio.sleep(pause)
                pause *= 2
        if session.seals is not None:
            self.belongs(call.id, session.seals.voice())
        head = Kept(VERSION, call.id, queue, milliseconds)
        await self._publish(call.id, wire.encode([head, call]), name, exchange="")
        return True

    async def _is_record(self, name: str, error: QueueMismatch) -> bool:
        """Return True if what could not be declared is a record with another time. RabbitMQ closes the connection
        of who deletes a queue of another type if it is empty."""
        for _ in range(MAX_TIMES):
            argument, value = differing(error) or ("", "")
            if argument != "x-expires" or not value.isdigit():
                return False
            arguments = self._session.topology.kept_arguments(int(value))
            try:
                await self._links.do(partial(Link.declare_queue, name=name, arguments=arguments))
            except QueueMismatch as other:
                error = other
            else:
                return True
        return False

    async def _holder(self, call_id: str, delay: float, kept: bool) -> str | None:
        """Take the `unique` key for this call. The id of the one that has it, if it is taken.

        A queue that takes one message marks the key from when a call is submitted until it has ended. Then its
        record keeps the key, if it has one. A record that stays empty is that of a submitter which has died."""
        topology = self._session.topology
        mark, record = topology.unique(call_id), topology.kept(call_id)
        arguments = topology.unique_arguments(delay)
        while True:
            try:
                await self._links.do(lambda link: link.declare_queue(mark, arguments))
                await self._publish(call_id, call_id.encode(), mark, exchange="")
                break
            except (QueueFull, QueueMismatch):
                # In the second case the key is that of a call with another delay.
                return await self._other(call_id) if kept else _nameless(call_id)
            except UnknownRun:  # the call that had the key has ended in between
                continue
        try:
            if await self._links.do(lambda link: link.queue_state(record)) is None:
                return None
            holder = await self._other(call_id)
        except BaseException:
            await self._let_go(call_id)
            raise
        if holder is not None:
            await self._let_go(call_id)
        return holder

    async def _other(self, call_id: str) -> str | None:
        """The id of the call that has the key of this one; what is the same in both ids, if it has no record: then
        it may run, or wait, for longer than its record was kept. None: its record is empty, so nobody has sent
        it."""
        name, pause, last = self._session.topology.kept(call_id), HOLDER_PAUSE, False
        while True:
            try:
                record = await self.read(call_id, any_generation=True)
            except UnknownRun:  # it has none, or not yet
                if last:
                    return _nameless(call_id)
            else:
                self.see_to(record)
                return record.id
            if pause >= HOLDER_SECONDS:
                state = await self._links.do(lambda link: link.queue_state(name))
                if state is None:
                    return _nameless(call_id)
                if not state[0]:
                    return None
                last = True  # it was written since that look
            else:
                await asyncio.sleep(pause)
                pause *= 2

    async def _let_go(self, call_id: str) -> None:
        """The call with this `unique` key has ended, or was not submitted."""
        mark = self._session.topology.unique(call_id)
        await self._links.do(lambda link: link.delete_queue(mark))

    async def cancel(self, record: Record, ending: Reply) -> None:
        await super().cancel(record, ending)
        call_id = record.call.id
        self._sender.withdraw(record.head.queue, call_id, self._owners.get(record.id))
        if base_of(call_id) is not None:
            await self._let_go(call_id)

    async def again(self, record: Record, call: Call, options: TaskOptions) -> bool:
        await self.touch(record.id)
        name = self._session.topology.kept(record.id)
        await self._publish(record.id, wire.encode([call]), name, exchange="")
        found = await self.read(record.id)
        if found.call.id == record.call.id:
            raise CallRefused(
                f"{record.id!r} was submitted under another key than the one that this process seals with: "
                "retry it where it was submitted, or submit it anew"
            )
        if found.call.id != call.id:  # the first one in the queue counts
            return False
        await self._sender.hand_over(call, options, address=name)
        return True

    async def add(self, call_id: str, reply: Reply, *, quiet: bool = False) -> None:
        topology = self._session.topology
        if quiet:  # sent to the queue directly, so that listeners at the exchange do not get it
            await self._publish(call_id, wire.encode([reply]), topology.kept(call_id), exchange="")
            return
        async with self._adding:
            await self.touch(call_id)
        key = topology.kept(call_id) if record_of(reply.id) == call_id else topology.kept_steps(call_id)
        await self._publish(call_id, wire.encode([reply]), key, exchange=topology.control)

    async def drop(self, call_id: str) -> None:
        await self.touch(call_id)
        name = self._session.topology.kept(call_id)
        await self._links.do(lambda link: link.delete_queue(name))

    async def touch(self, call_id: str) -> None:
        name = self._session.topology.kept(call_id)
        if await self._links.do(lambda link: link.queue_state(name)) is None:
            raise unknown_run(call_id)

    async def read(self, call_id: str, *, any_generation: bool = False) -> Record:
        messages = await self._reader.messages(call_id, may_be_empty=any_generation)
        head: Kept | None = None
        record: Record | None = None
        for message in self._opened(call_id, messages):
            for envelope in _envelopes(message.body):
                if isinstance(envelope, Kept):
                    head = envelope
                elif isinstance(envelope, Call) and head is not None:
                    if record is None:
                        record = Record(head, envelope)
                    else:
                        record.go_on(envelope)
                elif isinstance(envelope, Reply) and record is not None:
                    record.add(envelope)
        if record is None or (record.id != record_of(call_id) and not any_generation):
            raise unknown_run(call_id)
        return record

    async def entries(self, name: str) -> Entries:
        """The contents of a journal. Under seals, what workers put into it counts. Raises UnknownRun."""
        messages = await self._reader.messages(name)
        entries, seals = Entries(messages=len(messages), refused=len(messages)), self._session.seals
        place = self._session.topology.place("", self._session.topology.kept(name))
        for message in messages if seals is None else seals.from_workers(messages, place):
            entries.refused -= 1
            for envelope in _envelopes(message.body):
                if isinstance(envelope, Sent):
                    entries.sent.update(envelope.ids)
                elif isinstance(envelope, Reply):
                    entries.add(envelope)
        return entries

    @asynccontextmanager
    async def watch(self, call_id: str, *, steps: bool) -> AsyncIterator[asyncio.Event]:
        topology = self._session.topology
        keys = [topology.kept(call_id), *([topology.kept_steps(call_id)] if steps else [])]
        event = asyncio.Event()
        new = [key for key in keys if key not in self._watches]
        for key in keys:
            self._watches[key] = (*self._watches.get(key, ()), event)
        try:
            for key in new:
                await self._links.do(lambda link, key=key: self._bind(link, key))  # type: ignore[misc]
            yield event
        finally:
            for key in keys:
                await self._without(key, event)

    async def _without(self, key: str, event: asyncio.Event) -> None:
        """One less is to be told of what is published by this key."""
        events = list(self._watches.get(key, ()))
        if event in events:
            events.remove(event)
            if events:
                self._watches[key] = tuple(events)
            else:
                del self._watches[key]
                await self._unbind(key)

    def pursue(self, record: Record) -> AbstractContextManager[None]:
        return self.pursuits.pursue(self, record)

    def see_to(self, record: Record) -> None:
        self.pursuits.see_to(self, record)

    def heard(self, reply: Reply) -> None:
        """A reply has arrived that no await is for."""
        if self._watches:
            topology = self._session.topology
            for key in (topology.kept(reply.id), topology.kept_steps(reply.id.rpartition(".")[0])):
                for event in self._watches.get(key, ()):
                    event.set()

    # -- messages

    async def _publish(self, call_id: str, body: bytes, key: str, *, exchange: str) -> None:
        """Send it, and return when it is safe."""
        outbox = self._session.outbox
        while (room := outbox.room()) is not None:
            await room
        self._numbers += 1
        properties = Basic.Properties(
            content_type=CONTENT_TYPE, message_id=f"{call_id}:{id(self):x}:{self._numbers:x}", delivery_mode=2
        )
        message = RecordMessage(call_id, body, key, properties, exchange)
        message.key = self._owners.get(call_id)
        outbox.put(message)
        await message.future

    def _opened(self, call_id: str, messages: list[DeliveredMessage]) -> list[DeliveredMessage]:
        """Those of the messages that count: all, or those under the key of who began the record, as the first is,
        where messages are sealed."""
        seals = self._session.seals
        if seals is None:
            return messages
        place = self._session.topology.place("", self._session.topology.kept(call_id))
        opened: list[DeliveredMessage] = []
        run = serving.get()
        own = run is not None and record_of(run.call.id) == record_of(call_id)
        owner = run.call.by if run is not None and own else self._owners.get(call_id)
        for message in messages:
            try:
                found = seals.open(message, place)
            except SealError as error:
                seals.count(str(error))
                continue
            owner = key_of(found) if owner is None else owner
            if key_of(found) == owner:
                opened.append(found)
            else:
                seals.count("not allowed")
        if owner is not None:
            self.belongs(call_id, owner)
        return opened

    def owner(self, call_id: str) -> str | None:
        """The name of the key that the record is sealed with, if it was used here lately."""
        return self._owners.get(call_id)

    def belongs(self, call_id: str, owner: str) -> None:
        """Remember whose record it is: what is put into it is sealed with the same key."""
        if len(self._owners) >= MAX_OWNERS:
            del self._owners[next(iter(self._owners))]
        self._owners[call_id] = owner

    async def _bind(self, link: Link, key: str) -> None:
        await link.bind(self._session.reply_queue, self._session.topology.control, key)

    async def _unbind(self, key: str) -> None:
        session = self._session
        link = session.link
        if link is not None:
            with suppress(*CLIENT_ERRORS):
                await link.unbind(session.reply_queue, session.topology.control, key)


def _nameless(call_id: str) -> str:
    """An id for the call that has the key of this one, and has no record that tells its id."""
    return f"{base_of(call_id)}{GENERATION}"


def _envelopes(body: bytes) -> list[wire.Envelope]:
    try:
        return wire.decode(body)
    except DecodeError:
        return wire.salvage(body).envelopes
