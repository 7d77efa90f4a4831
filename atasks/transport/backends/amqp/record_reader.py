"""Reading the queue of a record or a journal without consuming it.

The queue has a single active consumer. Who reads it is sent everything, and closes the channel: the messages go
back as they were, and the next reader has its turn. What wants to know of a record here while it is read waits for
the next read, all together: what is in it may be much, and many calls may ask for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from atasks.errors import CallConnectionLost, UnknownRun
from atasks.outlast import Within
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.errors import is_down
from atasks.transport.backends.amqp.broker.frames import first_of
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import close_quietly, guard, shielded
from atasks.transport.records.contract import unknown_run

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["RecordReader"]

EMPTY_PAUSES: Final = (0.2, 5.0)
"""Seconds between two reads of what another reader kept, or may have kept: the first time, and at most. For as
long as the first pause a look waits for messages, where there may be none."""
LINE_SECONDS: Final = 5.0
"""Seconds for which a read waits behind others, before it leaves the line and comes again."""
EMPTY_LOOKS: Final = 5
"""Looks at a record without messages, and without another reader, until it is taken for an empty one."""
READ_SECONDS: Final = 90.0
"""For how long a read waits for its turn: a reader whose host is gone keeps it until the broker misses it."""
LONGEST_REST: Final = 5.0
"""Seconds between two reads of one record, at most: as many as the first of them took."""
READERS: Final = 100
"""Records that are read at a time: each read has a channel, and a connection has 2047 of them."""


class _Turn:
    """A read of a record, and who waits for it."""

    def __init__(self) -> None:
        self.has_begun = False
        self.seconds = 0.0
        """The time that it took."""
        self.done: asyncio.Future[list[DeliveredMessage] | UnknownRun | None] = (
            asyncio.get_running_loop().create_future()
        )
        """The messages, or that there is no record. None: it failed, or whoever read was cancelled."""


class RecordReader:
    """Reads for one transport, over one link after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._reading = asyncio.Semaphore(READERS)
        self._turns: dict[tuple[str, bool], _Turn] = {}
        """The last read of each record, which runs or waits for the one before."""

    async def messages(self, call_id: str, *, may_be_empty: bool = False) -> list[DeliveredMessage]:
        """The messages of a record or a journal, as they are; none if it is empty. Raises UnknownRun,
        CallConnectionLost. `may_be_empty`: its submitter may have died before it wrote anything."""
        try:
            async with Within(READ_SECONDS):
                while True:
                    turn = self._turns.get((call_id, may_be_empty))
                    if turn is None or turn.has_begun:  # it may have missed what has come since
                        return await self._in_turn(call_id, may_be_empty, turn)
                    await asyncio.wait([turn.done])
                    found = turn.done.result()
                    if isinstance(found, UnknownRun):
                        raise unknown_run(call_id)
                    if found is not None:
                        return found
        except TimeoutError:
            pass
        raise CallConnectionLost(
            f"run {call_id!r} cannot be read: another reader has it, and seems to be gone; try again"
        )

    async def _in_turn(self, call_id: str, may_be_empty: bool, before: _Turn | None) -> list[DeliveredMessage]:
        """Read when the read before is over, and has rested, for all who want it until then."""
        key, loop = (call_id, may_be_empty), asyncio.get_running_loop()
        turn = self._turns[key] = _Turn()
        found: list[DeliveredMessage] | UnknownRun | None = None
        began = loop.time()
        try:
            if before is not None:
                await asyncio.wait([before.done])
                await asyncio.sleep(min(before.seconds, LONGEST_REST))
            async with self._reading:
                turn.has_begun, began = True, loop.time()
                for pause in pauses(*EMPTY_PAUSES):
                    found = await self._session.links.do(lambda link: self._read(link, call_id, may_be_empty))
                    if found is not None:
                        return found
                    await asyncio.sleep(pause)
            raise AssertionError("there is always another pause")
        except UnknownRun as error:
            found = error
            raise
        finally:
            turn.seconds = loop.time() - began
            turn.done.set_result(found)
            if self._turns.get(key) is turn:
                del self._turns[key]

    async def _read(self, link: Link, call_id: str, may_be_empty: bool) -> list[DeliveredMessage] | None:
        """The messages, which stay in their queue. None, if another reader keeps them for long: that reader may
        find none either, and two that stayed would each take the other for one that has them.

        A queue that should have messages, and that no other reader has, is looked at several times: somebody may
        have taken them for a moment without consuming the queue. Then it is empty: they have expired, say."""
        name = self._session.topology.kept(call_id)
        messages: list[DeliveredMessage] = []
        arrived = asyncio.Event()
        is_ours, looks = False, 0  # once no other reader is there, whoever comes later waits for this one

        async def receive(message: DeliveredMessage) -> None:
            messages.append(message)
            arrived.set()

        channel = await link.open_channel()
        try:
            await guard(shielded(channel.basic_consume(name, receive)))
            while True:
                arrived.clear()
                # When the broker answers this, it has sent here all that was ready.
                state = await guard(shielded(channel.queue_declare(name, passive=True)))
                if messages and not state.message_count:
                    return messages
                if not messages and not state.message_count and state.consumer_count == 1:
                    is_ours = True
                looks += is_ours
                if is_ours and not messages and (may_be_empty or looks >= EMPTY_LOOKS):
                    return []
                patience = EMPTY_PAUSES[0] if may_be_empty or is_ours else LINE_SECONDS
                await first_of(asyncio.ensure_future(arrived.wait()), channel, None if messages else patience)
                if channel.is_closed:
                    raise ConnectionError("the channel was closed over a read")
                if not messages and not is_ours:
                    return None
        except ChannelNotFoundEntity as error:
            if is_down(error):
                raise CallConnectionLost(
                    f"run {call_id!r} cannot be read: the node of the cluster that has it is down"
                ) from error
            raise unknown_run(call_id) from None
        finally:
            await close_quietly(channel)
