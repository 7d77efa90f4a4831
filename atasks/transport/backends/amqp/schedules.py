"""The schedules of a namespace at the broker: a table in a queue, and a queue that says who keeps the times.

The queue of the table holds one message. It has a single active consumer: who reads the table consumes the
message, and has it alone until it closes its channel; who changes it publishes the next one before it acknowledges
the last. If it dies in between there are two, and the later version counts.

The queue of who keeps the times has a single active consumer too, so one worker gets what is published there, and
the next one when its connection goes. Each message is a hint to look at the table. The newest one is held, and the
one before it is acknowledged, so that the next worker gets a message at once.

Where there is no table there is nothing to keep, and workers stand in no line: a queue, and a channel and a
consumer of each worker, would be for nothing. Whoever changes the table tells all workers, and those
stand then that do not. One without a connection at that moment sees the table when it has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from msgspec import Meta
from pamqp.commands import Basic

from atasks.arrays import UNREADABLE
from atasks.signing import SealError
from atasks.tracking.queries import LookAtSchedules, encode
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import close_quietly, guard, shielded
from atasks.transport.backends.amqp.seals import Opened
from atasks.transport.schedules import Look, Schedules
from atasks.wire import CONTENT_TYPE, VERSION, Query

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["AMQPSchedules"]

logger = logging.getLogger("atasks.amqp")

EMPTY_SECONDS: Final = 1.0
"""Seconds without a message after which the queue of a table is taken for empty. If it is not, nothing is lost."""
LEADER_EXPIRES: Final = 600_000
"""Milliseconds for which the queue that says who keeps the times is there without a worker."""
WITHDRAW_SECONDS: Final = 5.0
"""For how long a worker that leaves waits for an answer of the broker that it has asked for to stand."""
MAX_VERSION: Final = 2**53
"""Versions of a table are below it, and begin at 1 again then: what anybody may put there is no end of them."""
TURN_SECONDS: Final = 90.0
"""For how long a turn at the table is waited for: who has it may be on a host that is gone."""

NONE: Final = -1
"""In the place of a version: the message is no table that counts."""
AT_A_TIME: Final = 16
"""Messages of the table's queue that are here at a time: there is one, unless somebody puts others there."""

_decoder = msgspec.msgpack.Decoder(tuple[Annotated[int, Meta(ge=0, lt=MAX_VERSION)], bytes])


class _Found(NamedTuple):
    """A table, and the message that has it."""

    message: DeliveredMessage
    version: int
    content: bytes


class AMQPSchedules(Schedules):
    """The table of one namespace, and this worker's place among those that keep its times."""

    def __init__(self, session: Session, consumer_timeout: float) -> None:
        """`consumer_timeout`: the seconds after which the broker takes back what is not acknowledged."""
        self._session = session
        self._links = session.links
        self._renew_seconds = consumer_timeout / 2
        self._standing: Look | None = None
        self._standing_up: asyncio.Future[bool] | None = None
        self._turn_to_stand = asyncio.Lock()
        self._will_look = False
        """True while somebody is about to look for the table, and waits for who looked before."""
        self._channel: Channel | None = None
        self._held: DeliveredMessage | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._numbers = 0
        self._has_complained = False

    # -- the table

    async def read(self) -> bytes:
        self._require_serve()

        async def look(link: Link) -> bytes:
            while await link.queue_state(self._table) is not None:
                with suppress(ChannelNotFoundEntity):  # it was deleted meanwhile
                    async with self._turn(link) as (_, found):
                        return found.content
            return b""

        return await self._links.do(look)

    async def swap(self, old: bytes, new: bytes) -> bool:
        self._require_serve()

        async def change(link: Link) -> bool:
            while True:
                if await link.queue_state(self._table) is None:
                    await link.declare_queue(self._table, self._arguments())
                    await self._publish(0, b"")
                with suppress(ChannelNotFoundEntity):  # it was deleted meanwhile
                    async with self._turn(link) as (channel, found):
                        if found.content == new:  # deleted by this process, over a link that was lost
                            return True
                        if found.content != old:
                            return False
                        await self._publish(max(found.version, 0) % (MAX_VERSION - 1) + 1, new)
                        await channel.basic_ack(found.message.delivery_tag or 0)
                        return True

        done = await self._links.do(change)
        if done:
            if self._held is None:  # else it keeps the times itself
                question = Query(VERSION, "schedules", encode(LookAtSchedules()))
                self._session.outbox.put(self._session.control([question], self._session.topology.all_key))
            self._hint()
        return done

    def _require_serve(self) -> None:
        """Raise InvalidKeys where nobody would believe the table that this process writes. It would take the place
        of one that this process cannot read."""
        if self._session.seals is not None:
            self._session.seals.require_serve()

    @property
    def _table(self) -> str:
        return self._session.topology.schedules

    def _arguments(self) -> dict[str, Any]:
        return {"x-queue-type": "classic", "x-single-active-consumer": True}

    @asynccontextmanager
    async def _turn(self, link: Link) -> AsyncIterator[tuple[Channel, _Found]]:
        """Have the table for oneself. Anybody may put messages there: one of them counts, and the others are taken
        away, a few at a time. A queue of another type, in which a message stays or comes to nobody, is refused
        when nothing has come for a while. Raises ChannelNotFoundEntity if the queue is deleted meanwhile."""
        counts: list[_Found] = []
        arrived = asyncio.Event()
        has_turn = False

        async def receive(message: DeliveredMessage) -> None:
            if has_turn:  # the next table comes here too
                return
            found = self._read(message)
            loser: _Found | None = found
            if not counts or found.version > counts[0].version:
                loser = counts.pop() if counts else None
                counts.append(found)
            arrived.set()
            if loser is not None:
                await channel.basic_ack(loser.message.delivery_tag or 0, wait=False)

        channel = await link.open_channel()
        try:
            await guard(shielded(channel.basic_qos(prefetch_count=AT_A_TIME)))
            channel.on_consumer_cancel_callbacks.add(lambda _: arrived.set())
            consumed = await guard(shielded(channel.basic_consume(self._table, receive)))
            async with asyncio.timeout(TURN_SECONDS):
                while True:
                    arrived.clear()
                    state = await guard(shielded(channel.queue_declare(self._table, passive=True)))
                    if consumed.consumer_tag not in channel.consumers:  # the queue that is there is another one
                        raise ChannelNotFoundEntity(f"queue {self._table!r} was deleted just now")
                    if counts and not state.message_count:
                        break
                    try:
                        async with asyncio.timeout(EMPTY_SECONDS):
                            await arrived.wait()
                    except TimeoutError:
                        with suppress(ChannelAccessRefused):  # this one may only use the queue
                            await link.declare_queue(self._table, self._arguments())
                        if not counts:
                            await self._publish(0, b"")
            has_turn = True
            yield channel, counts[0]
        finally:
            await close_quietly(channel)

    def _read(self, message: DeliveredMessage) -> _Found:
        """The table in a message."""
        seals = self._session.seals
        try:
            opened = message
            if seals is not None:
                opened = seals.open(message, self._session.topology.place("", self._table))
                if isinstance(opened, Opened) and not opened.key.serve:
                    raise SealError("not allowed")
            version, content = _decoder.decode(opened.body)
        except SealError as error:
            if seals is not None:
                seals.count(str(error))
        except UNREADABLE:
            if not self._has_complained:
                self._has_complained = True
                logger.error(
                    "a message in queue %r is no table of schedules, and is ignored; no further ones are logged",
                    self._table,
                )
        else:
            return _Found(message, version, content)
        return _Found(message, NONE, b"")

    async def _publish(self, version: int, content: bytes) -> None:
        """Send a table, and return when it is safe."""
        table = _Table(msgspec.msgpack.encode((version, content)), self._table, self._properties())
        self._session.outbox.put(table)
        await table.future

    def _properties(self) -> Basic.Properties:
        self._numbers += 1
        return Basic.Properties(
            content_type=CONTENT_TYPE, message_id=f"schedules:{id(self):x}:{self._numbers:x}", delivery_mode=2
        )

    # -- who keeps the times

    async def stand(self, look: Look) -> bool:
        self._standing, self._will_look = look, False
        self._standing_up = asyncio.ensure_future(self._links.do(self._stand))
        return await shielded(self._standing_up)

    def look_for_table(self) -> None:
        """There may be a table now: stand, if this worker would and does not."""
        if self._standing is not None and self._channel is None and not self._will_look:
            before, self._will_look = self._standing_up, True

            async def stand_after() -> bool:
                if before is not None:
                    await asyncio.wait([before])
                self._will_look = False
                return await self._links.do(self._stand)

            self._standing_up = asyncio.ensure_future(stand_after())
            self._standing_up.add_done_callback(_complain)

    async def restore(self, link: Link) -> None:
        """Stand again, over a new link."""
        self.detach()
        await self._stand(link)

    async def _stand(self, link: Link) -> bool:
        """Stand in line, if this worker would and there is a table. Tell whether it does."""
        async with self._turn_to_stand:
            if self._standing is None or self._channel is not None:
                return self._channel is not None
            if await link.queue_state(self._table) is None:
                return False
            try:
                await self._consume(link)
            except BaseException:
                self.detach()
                raise
            return True

    async def _consume(self, link: Link) -> None:
        await link.declare_queue(self._leader, self._arguments() | {"x-expires": LEADER_EXPIRES})
        channel = await link.open_channel()

        async def receive(message: DeliveredMessage) -> None:
            if self._channel is channel:
                held, self._held = self._held, message
                if held is not None:
                    await channel.basic_ack(held.delivery_tag or 0, wait=False)
                self._renew_later()
                if self._standing is not None:
                    self._standing()

        self._channel = channel
        await guard(shielded(channel.basic_consume(self._leader, receive)))
        self._hint()

    def detach(self) -> None:
        """The link is gone: somebody else keeps the times."""
        self._held = None
        self._channel = None
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    async def withdraw(self, look: Look) -> None:
        self._standing = None
        if self._standing_up is not None:  # a channel that is closed over an open question is logged
            patience = WITHDRAW_SECONDS if self._session.link is not None else 0.0
            _, late = await asyncio.wait([self._standing_up], timeout=patience)
            for task in late:
                task.cancel()
        channel = self._channel
        self.detach()
        if channel is not None:
            await close_quietly(channel)

    def leads(self, look: Look) -> bool:
        return self._held is not None and self._standing is look

    @property
    def _leader(self) -> str:
        return f"{self._session.topology.schedules}.leader"

    def _renew_later(self) -> None:
        """The broker takes back a message that is held for too long: hold a newer one by then."""
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.get_running_loop().call_later(self._renew_seconds, self._hint)

    def _hint(self) -> None:
        """Have whoever keeps the times look. Without such a worker the queue may be missing, and nobody minds."""
        self._session.outbox.put(Outgoing(b"", self._leader, self._properties(), mandatory=False, key=""))


def _complain(standing_up: asyncio.Future[bool]) -> None:
    """Say what keeps a worker from standing; over the next link it tries again."""
    if not standing_up.cancelled() and (error := standing_up.exception()) is not None:
        logger.warning("this worker cannot keep the times of schedules for now: %s", error)


class _Table(Outgoing):
    """A table on its way to its queue."""

    __slots__ = ("future",)

    def __init__(self, body: bytes, key: str, properties: Basic.Properties) -> None:
        super().__init__(body, key, properties)
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _fail(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(ConnectionError(reason))

    def confirmed(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def returned(self) -> None:
        self._fail("the queue of the schedules was deleted just now")

    def refused(self) -> None:
        self._fail("the broker takes no more schedules")

    def rejected(self, refusal: Any) -> None:
        if not self.future.done():
            self.future.set_exception(refusal.error("the table of schedules", len(self.body)))

    def lost(self) -> bool:
        self._fail("the connection was lost before the schedules were safe")
        return False  # the next holder of the turn reads the stored table
