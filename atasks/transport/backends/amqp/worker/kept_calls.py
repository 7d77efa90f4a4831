"""Submitted calls at their worker: whether they may begin still, what keeps their records, and their replies."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from atasks.errands import Errands
from atasks.errors import AtasksError, UnknownRun
from atasks.transport.backends.amqp.broker.delays import bind_when_due
from atasks.transport.backends.amqp.broker.early_calls import move_early_calls
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.records.contract import base_of, record_of
from atasks.wire import RUN_PIPELINE, Call, Reply

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.session import Session
    from atasks.transport.backends.amqp.worker.attempts import Attempts
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage
    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.backends.amqp.worker.stored_replies import Store
    from atasks.transport.records.contract import Record
    from atasks.transport.server import HeldRun

__all__ = ["KeptCalls"]

logger = logging.getLogger("atasks.amqp")

ROUND_SECONDS: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between two looks at the record of a call in hand, at most: for records that are kept for long."""
UNKNOWN_PAUSE: Final = 1.0
FRESH_SECONDS: Final = 0.1
"""For so long a call is believed not to have ended."""
STOOD_STILL_SECONDS: Final = 1.0
"""If a look took longer, or a round is so late, this process may have stood still: the broker may have given its
calls to others meanwhile, and the link may be lost without a word of that."""
DOUBT_SECONDS: Final = 2.0
"""For so long after that what is read is doubted: the socket may have had more than is read at once."""
EMPTIED: Final = "emptied"
JOURNAL_PAUSE: Final = 10.0
"""Seconds between two looks whether the call that makes a call in hand is still there."""


class KeptCalls:
    """The submitted calls of one worker.

    Nobody awaits them, so nobody can be asked for them, and their callers are not watched. A call that has waited
    in its queue may have been cancelled meanwhile: its record says so. While a call is in hand its record is
    used, so that it does not expire, and looked at, in case the word of its cancellation got lost.

    A run of a pipeline sees to its record itself.
    """

    def __init__(self, station: Station, attempts: Attempts) -> None:
        self._station = station
        self._attempts = attempts
        self._due: dict[str, float] = {}
        """Call in hand -> when to look at its record (event loop time)."""
        self._turned = math.inf
        """When the event loop turned last, as far as that was noticed (its time)."""
        self._doubtful_until = 0.0
        """Until when that which is read may have come while this process stood still (event loop time)."""
        self._errands = Errands("atasks kept call")
        self._stopped = False

    # -- before they begin

    def permit(self, call: Call, delivery: CallDelivery) -> Callable[[], Coroutine[Any, Any, bool]] | None:
        """Return the permit of a call that is not looked for when it comes: the call begins unless it has ended
        elsewhere while this process stood still. None: nothing keeps word of its end."""
        return partial(self._is_still_here, call.id) if self._looks_for(call, delivery) else None

    async def _is_still_here(self, call_id: str) -> bool:
        now = asyncio.get_running_loop().time()
        doubtful = now < self._doubtful_until or now - self._turned > ROUND_SECONDS + STOOD_STILL_SECONDS
        return not doubtful or await self._may_begin(call_id, again=True, looked=0.0)

    def take(self, call: Call, delivery: CallDelivery, again: bool) -> bool:
        """Find out whether a call may begin that may have been cancelled, or have ended. False: it is none of
        those that have records. `again`: it was delivered before."""
        if not self._looks_for(call, delivery) or self._station.worker.knows(call.id):
            return False
        delivery.request.consumer.claims += 1
        self._errands.start(self._find_out(call, delivery, again))
        return True

    def _looks_for(self, call: Call, delivery: CallDelivery) -> bool:
        """Return True if something keeps word of the end of this call that is looked at here."""
        return call.task != RUN_PIPELINE and self._station.session.topology.is_record(delivery.request.reply_to)

    async def _find_out(self, call: Call, delivery: CallDelivery, again: bool) -> None:
        consumer, looked = delivery.request.consumer, asyncio.get_running_loop().time()
        try:
            ended = await self._has_ended(call, delivery, again)
        except (AtasksError, *CLIENT_ERRORS) as error:  # if the connection was lost, the call is delivered again
            logger.debug("the record of call %s cannot be read: %s", call.id, error)
            ended, looked = False, 0.0  # nothing was seen: look again before the call begins
        finally:
            consumer.claims -= 1
        if isinstance(ended, Reply):
            self._station.worker.over(call, reply=ended)
            delivery.reply(ended)  # once more: whoever sent the call again may have missed it
        elif ended:
            delivery.drop()
            if ended is not EMPTIED:  # else it may run elsewhere, and need what a run leaves
                self._station.worker.over(call)
        elif self._stopped and again:
            delivery.requeue()
        elif self._stopped:
            delivery.give_back(call)
        elif not self._attempts.take(call, delivery, again):
            self._station.worker.deliver(call, delivery, alone=consumer.solo)
            if (run := self._station.worker.find(call.id)) is not None:
                self._doubt(run, again, looked)
        self._station.adapt_window()

    async def is_over(self, call_id: str) -> bool:
        """Return True if a call has ended elsewhere that is in hand here as a copy: the look before it began may
        have been long ago. False where that cannot be known now."""
        run = self._station.worker.find(call_id)
        delivery = None if run is None else run.deliveries[-1]
        if run is None or not isinstance(delivery, CallDelivery) or not delivery.request.is_copy_of(run.call):
            return False
        is_record = self._station.session.topology.is_record(delivery.request.reply_to)
        return is_record and await self._is_known_to_have_ended(run.call, delivery, again=True)

    async def _is_known_to_have_ended(self, call: Call, delivery: CallDelivery, again: bool) -> bool:
        """Return `_has_ended`, over the next link if this one gets lost; False where that cannot be known now."""
        links = self._station.session.links
        try:
            return bool(await links.do(lambda _: self._has_ended(call, delivery, again)))
        except (AtasksError, *CLIENT_ERRORS) as error:
            logger.debug("the record of call %s cannot be read: %s", call.id, error)
            return False

    def _store(self, delivery: CallDelivery) -> Store | None:
        """The database that has the record of this call; None: it is at the broker, or nowhere."""
        kept = delivery.request.reply_to == self._station.session.topology.stored
        return self._station.store if kept else None

    async def _has_ended(
        self, call: Call, delivery: CallDelivery, again: bool
    ) -> bool | Reply | Literal["emptied"]:
        """Return True if the record of the call says that it has ended, or if the journal of the call that makes
        it is gone with that; the reply, if it is in that journal. A call without a record runs. While the
        database is away calls run too, but for those that were delivered before: they may have run.

        A journal with nothing in it has been emptied, since it had a note of the call: a broker may be killed over
        the deletion of a queue."""
        store = self._store(delivery)
        if store is not None:
            return await store.has_ended(call, patient=again)
        link, topology = self._station.link, self._station.session.topology
        journal = topology.journal(delivery.request.reply_to)
        if journal is not None:
            try:
                entries = await self._station.journals.entries(journal)
            except UnknownRun:
                return True
            return entries.replies.get(call.id, False) if entries.messages else EMPTIED
        name = topology.kept(call.id)
        state = None if link is None else await link.queue_state(name)
        if state is None or state[0] == 1:  # there is nothing but the call in it
            return False
        record = await self._record(call)
        return record is not None and record.has_ended(call.id)  # None: what was in it has expired

    async def _record(self, call: Call) -> Record | None:
        """The record of the call, which may belong to a later call with the same key by now."""
        try:
            return await self._station.records.read(call.id, any_generation=True)
        except UnknownRun:
            return None

    # -- while they are in hand

    async def run(self) -> None:
        """Look at the records of the calls in hand, round after round, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            runs = {
                run.call.id: run for run in self._station.worker.runs if run.call.orphan and self._concerns(run)
            }
            self._due = {name: due for name, due in self._due.items() if name in runs}
            for name, run in runs.items():
                due = self._due.setdefault(name, loop.time() + UNKNOWN_PAUSE)
                if due <= loop.time() and not run.ended:
                    try:
                        self._due[name] = loop.time() + await self._look(run)
                    except (AtasksError, *CLIENT_ERRORS) as error:
                        logger.debug("the record of call %s cannot be used: %s", name, error)

    def _concerns(self, run: HeldRun) -> bool:
        delivery = run.deliveries[-1] if run.deliveries else None
        kept = isinstance(delivery, CallDelivery) and self._station.is_kept(delivery.request.reply_to)
        return kept and run.call.task != RUN_PIPELINE

    async def _look(self, run: HeldRun) -> float:
        """Use the record, and the mark of the `unique` key. In how many seconds to do so again."""
        topology, link, call = self._station.session.topology, self._station.link, run.call
        last = run.deliveries[-1]
        store = self._store(last) if isinstance(last, CallDelivery) else None
        if store is not None:
            ended, seconds = await store.hold(call)
            if ended:
                self._station.worker.cancel(call.id)
            return min(seconds / 3 or LONGEST_PAUSE, LONGEST_PAUSE)
        if link is None:
            return UNKNOWN_PAUSE
        of = run.deliveries[-1]
        if isinstance(of, CallDelivery) and (journal := topology.journal(of.request.reply_to)) is not None:
            if await link.is_gone(topology.kept(journal)):
                self._station.worker.cancel(call.id)  # the call that made it has ended, or was given up
            return JOURNAL_PAUSE
        if base_of(call.id) is not None:
            await link.queue_state(topology.unique(call.id))
        delivery = run.deliveries[-1]
        if not isinstance(delivery, CallDelivery) or delivery.request.reply_to == topology.nobody:
            return LONGEST_PAUSE
        record = await self._record(call)
        if record is None or record.id != record_of(call.id):
            return LONGEST_PAUSE  # it has expired: the call goes on
        if record.has_ended(call.id):
            self._station.worker.cancel(call.id)
        return min(record.expires / 3, LONGEST_PAUSE)

    async def notice(self) -> None:
        """Doubt all that waits here whenever this process has stood still, and what is read in the next seconds;
        until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._turned = loop.time()
            await asyncio.sleep(ROUND_SECONDS)
            if loop.time() - self._turned > ROUND_SECONDS + STOOD_STILL_SECONDS:
                self._doubtful_until = loop.time() + DOUBT_SECONDS
                self.doubt()

    def doubt(self) -> None:
        """The link is gone, or may be: what waits here for its turn, or for a token, is given to workers again and
        may end elsewhere. Such calls look for that before they begin."""
        for run in self._station.worker.runs:
            self._doubt(run, again=True)

    def _doubt(self, run: HeldRun, again: bool, looked: float = 0.0) -> None:
        """Have the end of a call looked for right before the call begins: while it waits here, for its turn or for
        a token, another copy of it may end. `again`: it was delivered before, or is given to others now. `looked`:
        when the end was looked for last (loop time)."""
        of = run.deliveries[-1] if run.call.orphan and run.deliveries else None
        if isinstance(of, CallDelivery) and self._looks_for(run.call, of):
            # One that refers to the run is a cycle.
            run.permit = partial(self._may_begin, run.call.id, again, looked)

    async def _may_begin(self, call_id: str, again: bool, looked: float) -> bool:
        """Return False if this call has ended elsewhere. True where that cannot be known now."""
        run, loop = self._station.worker.find(call_id), asyncio.get_running_loop()
        of = None if run is None else run.deliveries[-1]
        if run is None or not isinstance(of, CallDelivery):
            return True
        trusted = FRESH_SECONDS
        while loop.time() - looked > trusted:
            looked, trusted = loop.time(), max(2 * trusted, STOOD_STILL_SECONDS)  # a slow broker has its time
            if await self._is_known_to_have_ended(run.call, of, again):
                self._station.worker.moved(run.call.id, ended=True)
                return False
        self._doubt(run, again, looked)
        return True

    # -- when they have ended

    def ended(self, call_id: str, request: RequestMessage) -> None:
        """Settle a call whose ending is safe, and free its `unique` key if it has one."""
        if base_of(call_id) is None:
            # That of a step may wait for others: if it comes again, the journal answers it.
            request.settled(now=self._station.session.topology.journal(request.reply_to) is None)
        else:
            self._errands.start(self._let_go(call_id, request))

    async def _let_go(self, call_id: str, request: RequestMessage) -> None:
        """Free the `unique` key of a call that has ended, which is not acknowledged before that."""
        link = self._station.link
        try:
            if link is not None:
                await link.delete_queue(self._station.session.topology.unique(call_id))
        except CLIENT_ERRORS as error:
            logger.debug("the key of call %s cannot be freed yet: %s", call_id, error)
        request.settled()

    # -- life

    def move_early(self, queue: str) -> None:
        """A work queue is declared: have the calls moved to it that were submitted before it was there."""
        link, session = self._station.link, self._station.session
        if link is not None:
            self._errands.start(self._take_over(link, session, queue))

    async def _take_over(self, link: Link, session: Session, queue: str) -> None:
        """Have what is due come to the work queue from now on, and then move what has come to the one beside
        it."""
        try:
            await bind_when_due(link, session.topology, queue, early=False)
        except CLIENT_ERRORS as error:
            if not link.lost.done():
                logger.warning(
                    "delayed calls cannot come to queue %r, and wait until a worker can bind it: %s", queue, error
                )
        await move_early_calls(link, session.outbox, session.topology, queue, lambda: self._stopped)

    def stop(self) -> None:
        """The worker takes no more calls: those that wait for what their record says go back."""
        self._stopped = True

    def restart(self) -> None:
        """Take calls again, over a new link."""
        self._stopped = False

    async def finished(self) -> None:
        """Return when nothing is under way any more."""
        await self._errands.ended()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._errands.cancel()
