"""The dead queue, for people: looking at its messages, putting them back, dropping them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from atasks import wire
from atasks.errors import DecodeError, NotConnected
from atasks.signing import CONTENT_TYPE as SEALED
from atasks.signing import SealError
from atasks.tracking.steering import DeadMessage
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import close_channel, guard, shielded
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.broker.topology import MAX_BYTES
from atasks.transport.backends.amqp.worker.dead_letters import cut_from
from atasks.wire import Call

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["Copy", "DeadQueue", "dead_queue"]

MOST_BYTES: Final = 256 * 2**20
"""Bytes of messages that are looked at; those behind them stay unseen."""
MAX_NAMES: Final = 100
"""Calls of one message that are named."""


@asynccontextmanager
async def dead_queue(session: Session) -> AsyncIterator[DeadQueue]:
    """Get all messages of the dead queue, and acknowledge those only that are dropped, or safe elsewhere. The
    broker has the others in their places again when the channel is closed, however that comes about."""
    link = session.link
    if link is None:
        raise NotConnected("the connection is lost just now, or there never was one: try again")
    found = DeadQueue(session, link)
    try:
        await found.get()
        yield found
    except CLIENT_ERRORS as error:
        raise map_error(error, session.urls[0]) from error
    finally:
        await found.close()


class DeadQueue:
    """Messages of the dead queue that this process has, unacknowledged."""

    def __init__(self, session: Session, link: Link) -> None:
        self._session = session
        self._link = link
        self._acks: Acks | None = None
        self._found: dict[int, tuple[DeadMessage, DeliveredMessage]] = {}
        """By number."""
        self._leaving: set[Copy] = set()
        """Messages that are on their way."""

    @property
    def messages(self) -> Sequence[DeadMessage]:
        """The messages, the oldest first."""
        return [message for message, _ in self._found.values()]

    async def get(self) -> None:
        """Get those that are there now."""
        dead = self._session.topology.dead
        state = await self._link.queue_state(dead)
        if state is None:
            return
        self._link.lost.add_done_callback(self._lost)
        channel = await self._link.open_channel()
        self._acks = Acks(channel)
        size = 0
        for number in range(1, state[0] + 1):
            got = await guard(shielded(channel.basic_get(dead)))
            if not isinstance(got.delivery, Basic.GetOk):
                break
            self._found[number] = self._described(number, got), got
            size += len(got.body)
            if size > MOST_BYTES:
                break

    async def close(self) -> None:
        """Leave what is left to the queue."""
        try:
            if self._acks is not None:
                with suppress(*CLIENT_ERRORS):
                    await self._acks.flushed()
                    await close_channel(self._acks.channel)
        finally:
            self._link.lost.remove_done_callback(self._lost)  # else the link would keep all messages

    def _lost(self, _: object) -> None:
        """The link is gone: nothing leaves by the next one, since the broker has everything in the queue again."""
        for copy in list(self._leaving):
            copy.lost()

    async def retry(self, messages: Sequence[DeadMessage]) -> dict[int, str]:
        """Put messages back into the queues that they came from, many at a time, and acknowledge each when that is
        confirmed. Returns why that cannot be, by the numbers of those that stay."""
        alike: dict[str, list[DeadMessage]] = {}
        for message in messages:
            alike.setdefault(self._id(message), []).append(message)
        problems: dict[int, str] = {}
        await asyncio.gather(*(self._retry_in_turn(name, several, problems) for name, several in alike.items()))
        await self._flush()
        return {message.number: problems[message.number] for message in messages if message.number in problems}

    async def _retry_in_turn(self, name: str, messages: Sequence[DeadMessage], problems: dict[int, str]) -> None:
        """Put back messages of one id: the broker tells of one that it returns by its id."""
        for message in messages:
            if problem := await self._retry(name, message):
                problems[message.number] = problem
            else:
                self._drop(message)

    async def _retry(self, name: str, message: DeadMessage) -> str:
        got = self._delivered(message)
        if not message.queue:
            return "nobody noted which queue it came from: drop it"
        if whole := cut_from(got.header.properties.headers or {}):
            return f"it is the beginning of a message of {whole} bytes: drop it"
        for what, text in (("the name of its queue", message.queue), ("its id", name)):
            if (length := len(text.encode())) > MAX_BYTES:
                return f"{what} has {length} bytes, and the broker takes {MAX_BYTES}: drop it ({text[:60]!r}...)"
        if self._link.lost.done():
            return "the connection was lost before it left"
        # Nobody is told of a handler's call that failed, or of a request without an address.
        copy = Copy(got, message.queue, name, self._session.topology.nobody)
        self._leaving.add(copy)
        self._session.outbox.put(copy)
        try:
            return await copy.settled
        finally:
            self._leaving.discard(copy)

    def _id(self, message: DeadMessage) -> str:
        headers: Any = self._delivered(message).header.properties.headers or {}
        return _text(headers.get("x-message-id")) or message.name or f"dead-{message.number}"

    async def drop(self, message: DeadMessage) -> None:
        """Forget a message for good."""
        self._drop(message)
        await self._flush()

    def _drop(self, message: DeadMessage) -> None:
        assert self._acks is not None
        self._acks.ack(self._delivered(message).delivery_tag or 0)
        del self._found[message.number]

    async def _flush(self) -> None:
        if self._acks is not None:
            await self._acks.flushed()

    def _delivered(self, message: DeadMessage) -> DeliveredMessage:
        return self._found[message.number][1]

    def _described(self, number: int, got: DeliveredMessage) -> DeadMessage:
        headers: Any = got.header.properties.headers or {}
        deaths = headers.get("x-death")
        death: Any = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
        queue = _text(death.get("queue")) or _text(headers.get("x-first-death-queue"))
        reason = _text(death.get("reason")) or _text(headers.get("x-first-death-reason"))
        at = death.get("time") or got.header.properties.timestamp
        calls = self._calls(queue, got)
        return DeadMessage(
            number,
            _text(got.header.properties.message_id),
            queue,
            reason,
            len(got.body),
            at.timestamp() if isinstance(at, datetime) else None,
            got.header.properties.content_type == SEALED,
            list(dict.fromkeys(call.task for call in calls))[:MAX_NAMES],
            [call.id for call in calls[:MAX_NAMES]],
            got.body,
        )

    def _calls(self, queue: str, got: DeliveredMessage) -> list[Call]:
        """Return the calls in a message, as far as they can be read here."""
        session, message = self._session, got
        try:
            if session.seals is not None and queue:
                message = session.seals.open(got, session.topology.arrival(queue)(got), remember=False)
        except SealError:
            return []
        with suppress(DecodeError):
            found = wire.salvage(message.body, session.max_message).envelopes
            return [item for item in found if isinstance(item, Call)]
        return []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


class Copy(Outgoing):
    """A dead message on its way back, as it is, its seal included."""

    __slots__ = ("settled",)

    def __init__(self, got: DeliveredMessage, queue: str, name: str, nobody: str) -> None:
        known = got.header.properties
        properties = Basic.Properties(
            content_type=known.content_type,
            reply_to=known.reply_to or nobody,
            message_id=name,
            priority=known.priority,
            delivery_mode=2,
        )
        super().__init__(got.body, queue, properties, key="")
        self.settled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why it is not there; empty: it is."""

    def prepare(self) -> bool:
        return not self.settled.done()  # else nobody would acknowledge what it is a copy of

    def confirmed(self) -> None:
        self._settle("")

    def returned(self) -> None:
        self._settle(f"there is no queue {self.routing_key}: start a worker for it first")

    def refused(self) -> None:
        self._settle(f"queue {self.routing_key} is full")

    def rejected(self, refusal: Refusal) -> None:
        self._settle(refusal.reason)

    def stranded(self, arrived: bool) -> bool:
        # Also one that has arrived: its queue may be full, or yet lose it, since nobody has confirmed it.
        self._settle("it may be in both queues")
        return False

    def lost(self) -> bool:
        self._settle("the connection was lost: it may be in both queues")
        return False

    def _settle(self, problem: str) -> None:
        if not self.settled.done():
            self.settled.set_result(problem)
