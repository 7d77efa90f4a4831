"""Journals at the broker: a queue for each, which is read without being consumed.

Replies to calls that a run makes are published to the queue of its journal, with a copy for the queue of the lock
of that journal, where the run listens. So one confirmed message is kept, and ends the await. The journal has, in
any order, such replies, steps, and the ids of calls that were sent: those are published before the calls, so a
later run asks the workers for a call of which it finds no reply.

The broker may have two copies of a call, which are given to two workers. The run of one of them works at the
journal, for which it has a lock; that of the other waits until it can tell how the first one has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aiormq.abc import ConsumerCallback
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks import wire
from atasks.errands import Errands
from atasks.errors import AtasksError, UnknownRun
from atasks.options import TaskOptions
from atasks.outlast import apart, shield
from atasks.pauses import pauses
from atasks.transport import journals
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, is_down
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import shielded
from atasks.transport.backends.amqp.late_replies import LateReplies
from atasks.transport.backends.amqp.locks import Locks
from atasks.transport.journals import Elsewhere, Entries, Journals, lasts
from atasks.transport.pending import PUT_OFF, Pending
from atasks.wire import CONTENT_TYPE, MAX_IDS, VERSION, Reply, Sent

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.records import AMQPRecords
    from atasks.transport.backends.amqp.session import Session

__all__ = ["AMQPJournals"]

T = TypeVar("T")

logger = logging.getLogger("atasks.amqp")

HERE_SECONDS: Final = 5.0
"""For so long after a reconnect a call is waited for that was in hand before."""
HERE_PAUSE: Final = 0.05
DOWN_PAUSES: Final = (0.5, 10.0)
"""Seconds between two tries to use a journal whose node of the cluster is down: the first time, and at most."""
AT_ONCE_DOWN: Final = 2
"""So many journals are asked for at a time whose nodes are known to be down: a broker that does not answer keeps a
channel for each of those questions, and has others to answer."""
LONGEST_PAUSE: Final = 3600.0
"""Seconds between two uses of a journal whose call is in hand, at most."""


class Caller(journals.Caller, Protocol):
    """The part of a transport that makes the calls of journals."""

    async def require_worker(self, queue: str) -> None:
        """Raise NoWorker unless something serves the queue."""
        ...

    def suspect(self, pendings: Sequence[Pending]) -> None:
        """These calls may be lost: ask workers for them, and send again those that none has."""
        ...

    @property
    def at_locks(self) -> ConsumerCallback:
        """Takes messages from the queues of locks, whose consumers are named as their journals."""
        ...


class AMQPJournals(Journals):
    """The journals of one transport."""

    _caller: Caller

    def __init__(
        self,
        session: Session,
        records: AMQPRecords,
        caller: Caller,
        after_reply: Callable[[str, Callable[[bool], None]], None],
        has: Callable[[str], bool],
        is_first: Callable[[str], bool],
        moved: Callable[[str, bool], None],
        is_over: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`after_reply(call_id, do)` does it when the reply to that call is safe; `do(True)`: no other worker can
        have the call. `has(call_id)` says whether the broker has given that call to this worker over the link
        that there is. `is_first(call_id)` says whether whoever has sent that call has sent it here, and the broker
        has given it to nobody before. `moved(call_id, ended)` ends the run of a call that another worker has been
        given. `is_over(call_id)` says whether a call that is here as a copy is known to have ended elsewhere."""
        self._session = session
        self._records = records
        super().__init__(caller)
        self._after_reply = after_reply
        self._has = has
        self._is_first = is_first
        self._moved = moved
        self._is_over = is_over
        self._locks = Locks()
        self._open: dict[str, str] = {}
        """Name of a journal at work -> the id of its call."""
        self._unwanted: dict[str, bool] = {}
        """Names of journals that could not be let go yet -> whether they are to be deleted."""
        self._again: dict[str, asyncio.Task[None]] = {}
        """Name of a journal at work -> what sees to it that it is there still, and ends with that work."""
        self._hastened: dict[str, tuple[Link, Awaitable[tuple[int, int] | None]]] = {}
        """Name of a journal that is about to be opened -> what the broker was asked for it, over that link."""
        self._down = asyncio.Semaphore(AT_ONCE_DOWN)
        self._late = LateReplies()
        """Those that came while journals were open."""
        self._notes: dict[str, _SentNote] = {}
        """Name -> the note that takes further ids."""
        self._errands = Errands("atasks journal")
        self._keeper: asyncio.Task[None] | None = None

    # -- the contract

    def hasten(self, name: str, owner: str) -> None:
        link = self._session.link
        if link is None or link.lost.done() or name in self._open or not self._is_first(owner):
            return
        asked = self._locks.try_at_once(name, link, partial(self._declare_at_once, name, link))
        if asked is not None:
            self._hastened[name] = link, asked

    async def open(self, name: str, owner: str) -> Entries:
        is_new = name not in self._open
        try:
            ready, readers = await self._session.links.do(partial(self._declare, name, owner))
        except BaseException:
            if is_new and name not in self._open:  # else it was asked for twice
                self._let_go(name, drop=False)
            raise
        logger.debug("journal %s of call %s is open, with %d messages, %d read it", name, owner, ready, readers)
        self._open[name] = owner
        if self._keeper is None:
            self._keeper = apart(self._keep(), "atasks journals")
        if readers and not ready:  # they may have all of it, or wait for something to come
            self._note(name)
        entries = await self._records.entries(name) if ready or readers else Entries()
        if not is_new:
            known = entries.sent.union(entries.replies)
            self._note_again(name, [made for made in self._made(name) if made.call.id not in known])
        return entries

    async def _declare(self, name: str, owner: str, link: Link) -> tuple[int, int]:
        """Do as `_declare_now`, as soon as the node of the cluster is there that has the journal."""
        waits: Iterator[float] | None = None
        room: AbstractAsyncContextManager[object] = nullcontext()
        while True:
            try:
                return await self._declare_now(name, owner, link, room)
            except CLIENT_ERRORS as error:
                if link.lost.done() or not is_down(error):
                    raise
                if waits is None:
                    waits, room = pauses(*DOWN_PAUSES), self._down
                    logger.warning("call %s waits for the node that has its journal: %s", owner, error)
            await asyncio.sleep(next(waits))

    async def _declare_now(
        self, name: str, owner: str, link: Link, room: AbstractAsyncContextManager[object]
    ) -> tuple[int, int]:
        """Declare the journal when no other run works at it, and have the replies that go there come here too.
        Returns (messages ready, readers). Raises Elsewhere, and one of `CLIENT_ERRORS`.

        `room` is held while the node is asked that has the journal."""
        queue = self._session.topology.kept(name)
        hastened = self._hastened.pop(name, None)
        await self._look_for(owner, link)
        declare = partial(self._declare_queue, name, link)
        take = partial(self._take, name, link)
        if hastened is not None and hastened[0] is link:
            found = await hastened[1]
            if found not in (None, (0, 0)) and await link.queue_state(queue) is None:
                raise Elsewhere(owner, ended=True)  # the other run dropped it, and its lock, between the questions
        else:
            async with room:
                found = await self._locks.try_to_take(name, link, partial(_then, take, declare))
        if not found:
            await self._locks.take(name, link, take)
            await self._look_for(owner, link)
            async with room:
                state = await link.queue_state(queue)
                if hastened is not None and state == (0, 0):
                    # It was declared here, for a copy of this call that nobody had before, when the other run had
                    # dropped it; or that run has died before its first step, and its own copy comes again.
                    await link.delete_queue(queue, if_empty=True)
                    state = None
                if state is None:  # the other run has dropped it
                    raise Elsewhere(owner, ended=True)
                found = await self._locks.ask(name, declare)
        ready, readers = found
        if not ready and not readers and await self._is_over(owner):
            await link.delete_queue(queue)
            raise Elsewhere(owner, ended=True)
        return ready, readers

    async def _take(self, name: str, link: Link, asked: Awaitable[bool] | None = None) -> bool:
        """Take the lock of a journal, and have replies to the calls of its run come here. `asked`: the broker was
        asked for it. False: another connection has it."""
        lock = self._session.topology.lock(name)
        if not await (asked or link.lock(lock)):
            return False
        link.listen(lock, name, self._caller.at_locks)
        return True

    async def _declare_queue(self, name: str, link: Link) -> tuple[int, int]:
        """Declare the queue of a journal, in the turn of its lock."""
        self._unwanted.pop(name, None)
        return await link.declare_queue(*self._queue(name))

    def _declare_at_once(self, name: str, link: Link) -> Awaitable[tuple[int, int] | None] | None:
        """Take the lock of a journal, and declare it at the same time: nobody else can have ended its call, as
        long as nobody else has that lock. None: it cannot be asked for at once."""
        if not link.spares.has(2):
            return None
        asked = link.lock_at_once(self._session.topology.lock(name))
        declared = link.declare_at_once(*self._queue(name))
        self._unwanted.pop(name, None)
        return shielded(_if_taken(shielded(self._take(name, link, asked)), declared))

    def _queue(self, name: str) -> tuple[str, FieldTable]:
        """The queue of a journal, and its arguments."""
        topology = self._session.topology
        return topology.kept(name), topology.kept_arguments(int(self._records.expires * 1000))

    async def _look_for(self, call_id: str, link: Link) -> None:
        """Return when the call is here over this link: it comes again over another one. Raises Elsewhere;
        ConnectionError if the link is lost, which says nothing of the call."""
        for _ in range(round(HERE_SECONDS / HERE_PAUSE)):
            if link.lost.done():
                raise ConnectionError("the connection to the broker was lost")
            if self._has(call_id):
                return
            await asyncio.sleep(HERE_PAUSE)
        raise Elsewhere(call_id)

    def heard(self, reply: Reply) -> None:
        """A reply has come that no await is for: an earlier run of a call may have made that call, and the run of
        it that is here asks for it later."""
        if self._open and lasts(reply):
            self._late.add(reply)

    def late(self, step: str) -> Reply | None:
        return self._late.get(step)

    async def add(self, name: str, reply: Reply) -> None:
        try:
            await self._records.add(name, reply, quiet=True)
        except UnknownRun:
            owner = self._open.get(name)
            if owner is None:
                raise
            await shield(self._again.get(name) or self._aside(name, self._find_again(name, owner)))
            await self._records.add(name, reply, quiet=True)

    def _aside(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """See to a journal at work, as long as there is work at it, in the place of what does so now."""
        self._stop(name)
        task = self._again[name] = self._errands.start(work)
        task.add_done_callback(partial(self._has_seen_to, name))
        return task

    def _stop(self, name: str) -> None:
        if (task := self._again.pop(name, None)) is not None:
            task.cancel()

    def _has_seen_to(self, name: str, task: asyncio.Task[None]) -> None:
        if self._again.get(name) is task:
            del self._again[name]

    async def _find_again(self, name: str, owner: str) -> None:
        """Have a journal again whose queue is not there: it is gone, or its node of a cluster is down."""
        logger.warning("the journal of call %s is not there: what is lost of it, its next run does again", owner)
        await self.open(name, owner)

    def missed(self, pendings: Sequence[Pending]) -> None:
        """No worker has these calls any more: they are to be sent again. If their journal is gone, or has
        been emptied, that is why: each worker takes such a call for one that has ended."""
        for address in {pending.address for pending in pendings if pending.address}:
            name = self._session.topology.journal(address)
            if name not in self._open:
                continue
            self._note_again(name, [pending for pending in pendings if pending.address == address])
            if name not in self._again:
                self._aside(name, self._look_after(name, self._open[name]))

    async def _look_after(self, name: str, owner: str) -> None:
        """Declare a journal again if it is gone."""
        with suppress(AtasksError, Elsewhere, *CLIENT_ERRORS):
            try:
                await self._records.touch(name)
            except UnknownRun:
                await self._find_again(name, owner)

    def _address(self, name: str) -> str:
        return self._session.topology.lock(name)

    async def _require_worker(self, options: TaskOptions) -> None:
        await self._caller.require_worker(self._session.queue_of(options))

    def spend(self, name: str, reply: Reply) -> None:
        properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=f"{reply.id}:spent", delivery_mode=2)
        queue = self._session.topology.kept(name)
        self._session.outbox.put(Outgoing(wire.encode([reply]), queue, properties, mandatory=False))

    async def entries(self, name: str) -> Entries:
        """The contents of a journal, which may be another worker's. Raises UnknownRun."""
        return await self._records.entries(name)

    def finish(self, name: str, call_id: str, owner: str = "") -> None:
        if call_id:
            self._after_reply(call_id, lambda alone: self.drop(name) if alone else self.leave(name))
        else:
            self.drop(name)

    def leave(self, name: str) -> None:
        if name in self._open or name in self._hastened:
            logger.debug("journal %s is left to the next run", name)
            self._let_go(name, drop=False)

    def drop(self, name: str) -> None:
        self._let_go(name, drop=True)

    def _let_go(self, name: str, *, drop: bool) -> None:
        """End the work at a journal. What is asked of the broker for it still comes before it is given back."""
        self._open.pop(name, None)
        self._hastened.pop(name, None)
        self._stop(name)
        if not self._open:
            self._late.clear()
        self._locks.give(name, partial(self._release, name, drop))

    # -- life

    def detach(self) -> None:
        """The link is gone: other workers may be given the calls of these journals from now on. What those calls
        have made is neither sent nor asked for before that is known."""
        self.generation += 1
        for name in self._open:
            for pending in self._made(name):
                pending.since = PUT_OFF

    def attach(self) -> None:
        """There is another link: replies may have come into journals alone meanwhile."""
        for name, owner in self._open.items():
            self._aside(name, self._catch_up(name, owner))
        self._release_rest()

    def _made(self, name: str) -> list[Pending]:
        """The calls of this journal that are awaited."""
        address = self._session.topology.lock(name)
        return [pending for pending in self._session.pendings.values() if pending.address == address]

    async def _catch_up(self, name: str, owner: str) -> None:
        """End the awaits of calls whose replies are in the journal, and ask for the others; or end the run, if
        another worker has its call. While the journal is away, what calls answer comes here, from when this link
        has the lock."""
        entries = Entries()
        try:
            entries = await self.open(name, owner)
        except Elsewhere as elsewhere:
            self._moved(owner, elsewhere.ended)
            return
        except (AtasksError, *CLIENT_ERRORS) as error:
            logger.debug("journal %s cannot be read now: %s", name, error)
            if self._session.link is None:
                return  # over the next one there is another look
        for pending in self._made(name):
            reply = entries.replies.get(pending.call.id)
            if reply is not None:
                pending.answered(reply)
            elif pending.since == PUT_OFF:
                self._caller.suspect([pending])

    async def flushed(self) -> None:
        """Return when what is to be dropped is gone."""
        await self._errands.ended()
        await self._locks.given()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._locks.close()
        tasks = [*self._errands, *([self._keeper] if self._keeper is not None else [])]
        self._keeper = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._open.clear()

    # -- at the broker

    def _note_again(self, name: str, pendings: Sequence[Pending]) -> None:
        """Say in the journal once more that these calls are sent: what it said before may be lost."""
        for pending in pendings:
            self._note(name, pending.call.id)

    def _note(self, name: str, *call_ids: str) -> None:
        """Say in the journal that these calls are sent, before they are; none: so that there is something to
        read."""
        note = self._notes.get(name)
        if note is None or not note.takes():
            note = self._notes[name] = _SentNote(self._notes, name, self._session.topology.kept(name))
            self._session.outbox.put(note)
        note.ids += call_ids

    async def _release(self, name: str, drop: bool, taken: Link | None) -> bool:
        """Delete the journal, if it is to be dropped, and give back its lock. What cannot be done now is done
        later. `taken`: the link over which the lock was taken, if it was."""
        topology, link = self._session.topology, self._session.link
        try:
            if link is None or link.lost.done():
                raise ConnectionError("there is no connection to the broker")
            if drop:
                await link.delete_queue(topology.kept(name))
                logger.debug("journal %s is dropped", name)
            if taken is link:
                await link.unlock(topology.lock(name), name)
        except CLIENT_ERRORS as error:
            logger.debug("journal %s cannot be let go now: %s", name, error)
            self._unwanted[name] = drop or self._unwanted.get(name, False)
            return False
        self._unwanted.pop(name, None)
        return True

    def _release_rest(self) -> None:
        for name in self._unwanted:
            self._locks.give(name, partial(self._release_late, name))

    async def _release_late(self, name: str, taken: Link | None) -> bool:
        """Let go what could not be earlier, unless it is at work here again."""
        return name in self._unwanted and await self._release(name, self._unwanted[name], taken)

    async def _keep(self) -> None:
        """Use the journals of calls in hand, lest they expire, and let go those whose nodes may be back."""
        pause = min(self._records.expires / 3, LONGEST_PAUSE)
        while True:
            await asyncio.sleep(pause)
            self._release_rest()
            for name in list(self._open):
                with suppress(AtasksError, *CLIENT_ERRORS):
                    await self._records.touch(name)


async def _if_taken(taken: Awaitable[bool], declared: Awaitable[T]) -> T | None:
    """Return what is known of a journal; None if another connection has its lock."""
    try:
        found = await declared
    except CLIENT_ERRORS:
        await taken  # before it is given back
        raise
    return found if await taken else None


async def _then(take: Callable[[], Awaitable[bool]], declare: Callable[[], Awaitable[T]]) -> T | None:
    """Take the lock of a journal, and declare it. None if another connection has the lock."""
    return await declare() if await take() else None


class _SentNote(Outgoing):
    """The ids of calls that are sent right behind it."""

    __slots__ = ("_name", "_open", "ids")

    def __init__(self, notes: dict[str, _SentNote], name: str, queue: str) -> None:
        properties = Basic.Properties(content_type=CONTENT_TYPE, delivery_mode=2)
        super().__init__(b"", queue, properties, mandatory=False)
        self._open: dict[str, _SentNote] | None = notes
        self._name = name
        self.ids: list[str] = []

    def takes(self) -> bool:
        """Return True if there is room for one more."""
        return self._open is not None and len(self.ids) < MAX_IDS

    def prepare(self) -> bool:
        notes, self._open = self._open, None
        if notes is not None and notes.get(self._name) is self:
            del notes[self._name]
        self.body = wire.encode([Sent(VERSION, self.ids)])
        self.properties.message_id = f"{self._name}:{id(self):x}"
        return True
