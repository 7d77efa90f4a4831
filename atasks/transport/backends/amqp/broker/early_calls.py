"""Calls that were submitted before any worker had declared their work queue: moved there as soon as there is
one."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from weakref import WeakKeyDictionary

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks.outlast import outlast
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.bodies import Body
from atasks.transport.backends.amqp.broker.delays import was_delayed
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outbox import Outbox
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import close_quietly, guard, shielded
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.broker.topology import Topology

__all__ = ["may_be_moved", "move_early_calls"]

logger = logging.getLogger("atasks.amqp")

AT_ONCE: Final = 200
"""Messages that are on their way at once."""
SETTLE_SECONDS: Final = 1.0
"""Seconds for which messages that have left may still be settled, where the move is given up."""
REFUSED_PAUSE: Final = 0.5
"""Seconds before the next message, where the work queue took none."""
LOCK_PAUSES: Final = (0.05, 1.0)
"""Seconds between two tries to take the lock that another mover has: the first pause, and the longest."""
TELL_SECONDS: Final = 30.0
"""After so many seconds without the lock a line is logged: whoever has it may be no mover."""

MAY_BE_MOVED: Final = "may be moved"
"""The reason in an `x-death` header that the broker did not write."""

_HELD: Final[WeakKeyDictionary[Link, set[str]]] = WeakKeyDictionary()
"""Link -> the locks that a mover has, or asks for, over it: the broker gives a link the same one again."""
_UNDER_WAY: Final[WeakKeyDictionary[Outbox, dict[str, asyncio.Task[bool]]]] = WeakKeyDictionary()
"""Outbox -> who settles the message of an id that it moves, from whatever queue. The broker tells of one that
it returns by its id alone."""


async def move_early_calls(
    link: Link, outbox: Outbox, topology: Topology, queue: str, stopping: Callable[[], bool] = lambda: False
) -> None:
    """Move the calls that wait for this work queue into it, if it is there, and delete the queue that they waited
    in. Once `stopping()` is true, what the work queue refuses is left for its next worker.

    Guarantees: a call leaves that queue when it is safe in the work queue; where the connection is lost in
    between it may be in both. Then the second one says so, and a worker runs none of both twice that may run once
    only. Whoever submits looks for the work queue after it has put a call here, and a worker
    looks here after it has declared it, so one of the two moves the call. Only one moves at a time: to delete an
    empty queue deletes what others have got from it and not acknowledged, too.
    """
    early, work, lock = topology.early(queue), topology.work(queue), topology.early_lock(queue)
    held = _HELD.setdefault(link, set())
    mine = False
    loop = asyncio.get_running_loop()
    tell_at = loop.time() + TELL_SECONDS
    try:
        for pause in pauses(*LOCK_PAUSES):
            if await link.queue_state(early) is None or await link.queue_state(work) is None:
                return
            if lock not in held:
                held.add(lock)
                mine = True  # until the broker has said no, whatever becomes of this
                mine = await outlast(link.lock(lock))
                if mine:
                    break
                held.discard(lock)
            if stopping():
                return  # who has the lock moves everything
            if loop.time() >= tell_at:
                tell_at = math.inf
                logger.warning(
                    "calls that wait for queue %r are not moved to it here: another connection moves them, or has "
                    "queue %r for something else",
                    queue,
                    lock,
                )
            await asyncio.sleep(pause)
        # RabbitMQ closes the connection over a queue of another type, from which nobody can get a message, or
        # which cannot be deleted if it is empty. This declaration it refuses over such a queue.
        await link.declare_queue(early, topology.early_arguments())
        while not await _move_all(link, outbox, early, work):
            if stopping():
                return
            await asyncio.sleep(REFUSED_PAUSE)
            if await link.queue_state(work) is None:
                return
    except ChannelNotFoundEntity:
        return  # somebody has deleted the queue meanwhile
    except CLIENT_ERRORS as error:  # the next worker that declares the queue looks again
        logger.warning(
            "calls that wait for queue %r could not be moved to it (%s): its next worker tries again", queue, error
        )
    finally:
        if mine:
            try:
                with suppress(*CLIENT_ERRORS):
                    await outlast(link.delete_queue(lock))
            finally:
                held.discard(lock)


async def _move_all(link: Link, outbox: Outbox, early: str, work: str) -> bool:
    """Move what is there, and delete the queue. Returns False if there is something again: what the work queue did
    not take, or a call that was put there meanwhile."""
    channel = await link.open_channel()
    moved: set[asyncio.Task[bool]] = set()
    under_way = _UNDER_WAY.setdefault(outbox, {})
    try:
        taken = True
        while taken:
            while (room := outbox.room()) is not None and not link.lost.done():
                await asyncio.wait((room, link.lost), return_when=asyncio.FIRST_COMPLETED)
            found = await guard(shielded(channel.basic_get(early)))
            if not isinstance(found.delivery, Basic.GetOk):
                break
            message = _Moved(found.body, work, _properties(found, early))
            name = message.properties.message_id or ""
            while name in under_way:
                await asyncio.wait((under_way[name],))
            outbox.put(message)
            settling = asyncio.create_task(_settle(message, channel, found.delivery, outbox, early))
            settling.add_done_callback(lambda _, name=name: under_way.pop(name))  # type: ignore[misc]
            under_way[name] = settling
            moved.add(settling)
            if len(moved) >= AT_ONCE:
                done, moved = await asyncio.wait(moved, return_when=asyncio.FIRST_COMPLETED)
                taken = all(task.result() for task in done)
        if moved:
            done, _ = await asyncio.wait(moved)
            taken = taken and all(task.result() for task in done)
        if not taken:  # the queue is full, or gone
            return False
        with suppress(ChannelPreconditionFailed):  # it is not empty any more, or somebody consumes it
            await guard(shielded(channel.queue_delete(early, if_unused=True, if_empty=True)))
            return True
        state = await link.queue_state(early)
        return state is None or not state[0]
    finally:
        if moved:  # what is not settled yet would come back with the channel, and be in both queues
            await asyncio.wait(moved, timeout=SETTLE_SECONDS)
        await close_quietly(channel)


async def _settle(message: _Moved, channel: Channel, delivery: Basic.GetOk, outbox: Outbox, early: str) -> bool:
    """Acknowledge what a message came by when it is safe. Returns False where the work queue did not take it: then
    it is put into the early queue again."""
    tag, arrived = delivery.delivery_tag or 0, await message.arrived
    safe = arrived
    if arrived is False:  # given back it would count as one that may be in the work queue
        again = _Moved(message.body, early, message.properties)
        outbox.put(again)
        safe = await again.arrived
    with suppress(*CLIENT_ERRORS):
        if safe:
            await channel.basic_ack(tag, wait=False)
        else:
            await channel.basic_nack(tag, requeue=True, wait=False)
    return bool(arrived)


def _properties(found: DeliveredMessage, early: str) -> Basic.Properties:
    """Return those of a request: with others, as the name of another user, the broker would refuse the message.
    One without an id gets one, by which it is known until it is confirmed."""
    known, delivery = found.header.properties, found.delivery
    moved_by: FieldTable = {"queue": early}
    if may_be_moved(known) or (isinstance(delivery, Basic.GetOk) and delivery.redelivered):
        moved_by["reason"] = MAY_BE_MOVED
    return Basic.Properties(
        content_type=known.content_type,
        correlation_id=known.correlation_id,
        delivery_mode=known.delivery_mode,
        expiration=known.expiration,
        headers={"x-death": [moved_by]} if len(moved_by) > 1 or was_delayed(known) else None,
        message_id=known.message_id or f"early-{uuid.uuid4().hex}",
        priority=known.priority,
        reply_to=known.reply_to,
    )


def may_be_moved(properties: Basic.Properties) -> bool:
    """Return True if another copy of the message may have come from an early queue before: the connection of who
    moved that one ended before it was acknowledged."""
    deaths = (properties.headers or {}).get("x-death")
    if not isinstance(deaths, list):
        return False
    return any(isinstance(death, dict) and death.get("reason") == MAY_BE_MOVED for death in deaths)


class _Moved(Outgoing):
    """A request on its way from one queue to another, its body as it is, seal included."""

    __slots__ = ("arrived",)

    def __init__(self, body: Body, work: str, properties: Basic.Properties) -> None:
        super().__init__(body, work, properties, key="")
        self.arrived: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        """True: it is safe, or was dropped; False: it is not there; None: nobody knows."""

    def confirmed(self) -> None:
        self._tell(True)

    def returned(self) -> None:
        self._tell(False)

    refused = returned

    def rejected(self, refusal: Refusal) -> None:
        """Drop a message that cannot be sent, whoever tries: put back it would come again for ever."""
        if refusal.exchange is None:
            super().rejected(refusal)
        self._tell(refusal.exchange is None)

    def stranded(self, arrived: bool) -> bool:
        self._tell(arrived or None)
        return False

    def lost(self) -> bool:
        self._tell(None)
        return False

    def _tell(self, arrived: bool | None) -> None:
        if not self.arrived.done():
            self.arrived.set_result(arrived)
