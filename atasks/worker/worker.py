"""A worker: runs delivered calls in slots, and replies.

The way of a call: `deliver` (from the transport) -> `_start` when a slot is free, and a place in a pool if it
needs one -> `execute` (a task of its own) -> `ended`, which replies. A nested await parks the run
(`HeldCall.park`) and takes a slot again (`HeldCall.unpark`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from atasks import forks
from atasks.call_log import logger as calls
from atasks.errors import TransportError, WorkerLost
from atasks.options import MAX_ATTEMPTS, MAX_TIMEOUT, validate_count
from atasks.outlast import apart
from atasks.supervisor import running_calls
from atasks.tracking.counters import (
    BAD,
    BUSY,
    ENDED,
    GIVEN_BACK,
    LAST_BUCKET,
    LONGEST,
    LOST,
    PARKED,
    RECEIVED,
    REFUSED,
    RETRIED,
    RUN,
    RUN_US,
    SINCE_MS,
    SLOTS,
    UNKNOWN,
    WAIT,
    WAIT_US,
    WITHDRAWN,
    Counters,
)
from atasks.transport.delivery import Delivery
from atasks.transport.journals import journal_name
from atasks.transport.records.contract import key_of_run
from atasks.turns import Turns
from atasks.wire import Call, End, Query, QueryAnswer, Reply, Status
from atasks.worker.backlog import Backlog
from atasks.worker.endings import log_ending, settle_unanswered, tell_ending
from atasks.worker.execution import ended_by_request, execute, pass_on, status
from atasks.worker.executors.pools import Executors
from atasks.worker.held_call import RETURNED, HeldCall, Reason
from atasks.worker.impatience import Impatience
from atasks.worker.life import Life, new_worker_id
from atasks.worker.limited import TokenWaits
from atasks.worker.recent import CondemnedCalls, RecentIds, RecentReplies
from atasks.worker.served_tasks import ServedTasks, Tasks
from atasks.worker.slots import Slots
from atasks.worker.streams import StreamSenders
from atasks.worker.watchdog import Watchdog

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from atasks.definitions import BaseTask
    from atasks.options import Executor
    from atasks.tracking.watching import Watching
    from atasks.transport.contract import Transport

__all__ = ["Worker"]

logger = logging.getLogger("atasks.worker")

ALONE_PATIENCE: Final = 10.0
"""Seconds for which a call that is to run alone waits for those that run to end."""


class Worker:
    """Serves the calls of one namespace that one transport delivers.

    At most `concurrency` calls run at any time, parked ones not counted; at most `max_parked` are parked.
    Blocking functions run in at most `threads` threads and `processes` processes: `Executors` has the defaults.
    """

    def __init__(
        self,
        router: Tasks,
        transport: Transport,
        *,
        concurrency: int = 100,
        max_parked: int = 50_000,
        threads: int | None = None,
        processes: int | None = None,
        process_setup: str | None = None,
        state: Any = None,
    ) -> None:
        validate_count("concurrency", concurrency)
        validate_count("max_parked", max_parked)
        self.id = new_worker_id()
        self.router = router
        self.served = ServedTasks(router)
        self._items = router.registry.items
        self.namespace = router.namespace
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.no_context = Context()
        """For timers of this event loop: else each would have a copy of the context that it is made in, and so
        keep a call until its time has come, also if it is cancelled."""
        self.concurrency = concurrency
        self.max_parked = max_parked
        self.state = state
        self.pools = Executors(threads, processes, concurrency, self._fill, process_setup)
        """For blocking functions."""
        self._notes = notes = running_calls.installed()
        self.counters = Counters(self.id, self.namespace, None if notes is None else notes.table)
        """The counters of this worker: everything that is a number of calls is counted there, and nowhere else."""
        self.cells = cells = self.counters.own
        """Those of them that are not of one atask: `BUSY`, `PARKED` and so on."""
        cells[SLOTS], cells[SINCE_MS] = concurrency, int(time.time() * 1000)
        self._rows = self.counters.rows
        self.slots = Slots(concurrency, self._fill)
        self.token_waits = TokenWaits(self.loop, lambda: transport.slots_changed(self))
        self.is_forked = False
        """True in a child that was forked: the worker is in its parent, and this is a copy."""
        forks.tell(self)
        self.draining = False
        self.accepting = True
        """True while the worker takes calls."""
        self._alone: HeldCall | None = None
        self._turns = Turns(self.loop, self._rested)
        self._impatience = Impatience(self)
        self._held: dict[str, HeldCall] = {}
        self._backlog = Backlog(self.pools, self._may_start_alone, self._resting)
        self.withdrawn = RecentIds()
        """Calls whose awaits have ended, and which were not in hand here."""
        self.watching: Watching | None = None
        """Tells of events, while somebody watches."""
        self.looks: set[Callable[[], None]] = set()
        """Bring the progress of calls up to date that do not report it by themselves: called if somebody asks."""
        self._condemned: CondemnedCalls | None = None
        """Calls that are to end when they come here; None: there were none."""
        self._finished = RecentReplies() if transport.redelivers else None
        self.streams = StreamSenders(self.loop, remember=transport.redelivers)
        self._empty: asyncio.Event | None = None
        """Set when no call is in hand; None: nobody has waited for that."""
        self._watchdog = Watchdog(self.loop, cells)
        self._life = Life(self, self._watchdog)

    # -- life

    @property
    def tasks(self) -> list[str]:
        """The names of the atasks that it serves."""
        return self.served.names()

    @property
    def held(self) -> int:
        """Calls in hand: running, parked, or waiting for a slot."""
        return len(self._held)

    @property
    def unstarted(self) -> int:
        """Calls that wait here for a slot, or for a place in a pool."""
        return self._backlog.size

    @property
    def room(self) -> int:
        """The number of calls for which there are slots now. A negative number: so many calls wait here for a
        slot."""
        if self.alone or not self.accepting:
            return 0
        return self.slots.free or -self.unstarted

    @property
    def started(self) -> int:
        """Calls that it has started so far."""
        return self.counters.started

    @property
    def parked(self) -> int:
        """Calls that await other calls now."""
        return self.cells[PARKED]

    @property
    def bad_messages(self) -> int:
        """Messages that could not be read."""
        return self.cells[BAD]

    async def start(self, queues: Sequence[str] | None = None) -> None:
        """Take calls from now on; `queues` None: those of the atasks that are registered."""
        await self._life.start(queues)

    async def wait(self) -> None:
        """Return when it has drained; raise the TransportError that stopped it, if one did."""
        await self._life.wait()

    def fail(self, error: TransportError) -> None:
        """The transport is lost for good: `wait` raises."""
        self._life.fail(error)

    async def drain(self, grace: float = 30.0) -> None:
        """Take no more calls, give back those that have not started, let the running ones finish, then cancel and
        give back the rest. Safe to call again: every caller waits for the one drain.

        Args:
            grace: Seconds for which running calls may go on.
        """
        await self._life.drain(grace)

    def threads(self) -> list[tuple[threading.Thread, HeldCall]]:
        """The threads of `asyncio.to_thread` that run functions of its calls."""
        return self._life.threads()

    @property
    def is_torn_down(self) -> bool:
        """The event loop of this worker ends, and everything in it is cancelled."""
        return self._life.is_torn_down

    def give_back_unstarted(self, executor: Executor | None = None, queue: str | None = None) -> None:
        """Return the calls that wait here to their queue, uncharged; `executor`: only those that wait for a place
        in this pool, to where such calls wait; `queue`: only those that came from it."""
        for run in self._backlog.runs(executor):
            if run.queue == queue if queue is not None else not (run.alone and self.accepting):
                self._backlog.remove(run)
                run.reason = Reason.DRAINED
                self._forget(run)
                run.row[ENDED + GIVEN_BACK] += 1
                run.deliveries[-1].give_back(run.call, executor)
                for delivery in run.deliveries[:-1]:
                    delivery.drop()

    @property
    def runs(self) -> list[HeldCall]:
        """The calls in hand."""
        return list(self._held.values())

    async def until_empty(self, seconds: float) -> None:
        """Return when no call is in hand, or after so many seconds."""
        if not self._held:
            return
        empty = self._empty = self._empty or asyncio.Event()
        empty.clear()
        try:
            async with asyncio.timeout(seconds):
                await empty.wait()
        except TimeoutError:
            pass

    # -- deliveries

    def deliver(
        self,
        call: Call,
        delivery: Delivery,
        alone: bool = False,
        permit: Callable[[], Coroutine[Any, Any, bool]] | None = None,
    ) -> None:
        """A request has arrived: run it as soon as there is a slot, and a place in its pool, or, if `alone`, as
        soon as nothing else runs; `permit` may still refuse it then. Never raises and never waits."""
        call_id = call.id
        held = self._held.get(call_id)
        if held is not None:  # a redelivery of a call in hand: one run owns all its deliveries
            held.deliveries += (delivery,)
            if held.reason is Reason.ELSEWHERE or (held.reason is Reason.WITHDRAWN and self._finished is None):
                held.reason = Reason.AWAITED_AGAIN
            if held.sender is not None:
                held.sender.ask()
            return
        if self._finished is not None:
            finished = self._finished.get(call_id)
            if finished is not None:
                self.streams.delivered_again(call_id, delivery)
                self.over(call, reply=finished)
                delivery.reply(finished)
                return
        if (
            call_id in self.withdrawn.ids
            and (withdrawn := self.withdrawn.since(call_id)) is not None
            and call.sent_ms <= withdrawn
        ):
            delivery.drop()
            self.over(call)
            return
        if not self.accepting:
            delivery.give_back(call)
            return
        if call.max_attempts > MAX_ATTEMPTS:
            self.served.cap(call)
        item = self._items.get(call.task)
        task = self.served.find(call.task) if item is None else item.task
        row = self._rows.get(call.task)
        if row is None:
            row = self.counters.row(UNKNOWN if task is None else call.task)
        row[RECEIVED] += 1
        deadline = None if call.timeout_ms is None else self._deadline(call, delivery)
        run = HeldCall(self, call, (delivery,), self.loop, task, row, deadline, permit=permit)
        if self.watching is not None:
            self.watching.held("received", run)
        self._held[call_id] = run
        if task is None:
            run.task = apart(self._pass_on(run), "atasks pass on")
        elif alone:
            run.alone = True
            run.patient_until = max(self.loop.time(), self._turns.latest) + ALONE_PATIENCE
            self.loop.call_at(run.patient_until, self._fill, context=self.no_context)
            self._backlog.add(run)
            self._fill()
        elif (
            self.slots.free
            and not self._backlog.size
            and (task.executor is None or self.pools.has_place(task.executor))
        ):
            self._start(run, task)
        else:
            self._let_wait(run, task)

    def _let_wait(self, run: HeldCall, task: BaseTask[..., Any]) -> None:
        """A call cannot start yet: it waits here for a slot, or a place."""
        self._backlog.add(run)
        if self.slots.free or task.executor is not None:
            self._fill()
        if self._impatience.timer is None:
            self._impatience.begin()

    def cancel(self, call_id: str) -> None:
        """The await of this call has ended: cancel its run, or do not start it. Never raises."""
        run = self._held.get(call_id)
        if run is None:
            self.withdrawn.add(call_id)
        elif run.task is not None:
            run.cancel(Reason.WITHDRAWN)
        else:
            self._backlog.remove(run)
            self._forget(run)
            run.row[ENDED + WITHDRAWN] += 1
            log_ending(run, None)
            for delivery in run.deliveries:
                delivery.drop()
            if run.alone:  # others waited for it to start
                self._fill()

    def end(self, run: HeldCall) -> None:
        """Somebody wants this call to end, and does not await it: cancel its run, or do not start it. Its await
        ends in `CallCancelled`."""
        if run.task is not None:
            run.cancel(Reason.ENDED)
        else:
            self._backlog.remove(run)
            self._refuse(run, ended_by_request(run))
            if run.alone:  # others waited for it to start
                self._fill()

    def condemn(self, call_id: str, owner: str | None) -> None:
        """End the call when it comes here within 10 minutes; `owner`: only if it is of the key of that name."""
        if self._condemned is None:
            self._condemned = CondemnedCalls()
        self._condemned.add(call_id, owner)

    def holds(self, call_id: str) -> bool:
        """Return True if this worker holds the call."""
        return call_id in self._held

    def look(self) -> None:
        """Bring the `progress` of the calls in hand up to date."""
        for look in list(self.looks):
            look()

    def find(self, call_id: str) -> HeldCall | None:
        """The call of that id, if it is in hand here."""
        return self._held.get(call_id)

    def finished(self, call_id: str) -> Reply | End | None:
        """The reply of a call that finished here lately."""
        return None if self._finished is None else self._finished.get(call_id)

    def knows(self, call_id: str) -> bool:
        """Return True if this worker holds the call, or finished it lately."""
        return self.holds(call_id) or self.finished(call_id) is not None

    def knows_any(self, call_ids: Iterable[str]) -> bool:
        """Return True if this worker holds one of these calls, or finished it lately. A call costs less here than
        where each is looked for by itself."""
        finished = self._finished
        known = not self._held.keys().isdisjoint(call_ids)
        return known or (finished is not None and finished.has_any(call_ids))

    def owner(self, call_id: str) -> str | None:
        """Return `Call.by` of a call that this worker holds or finished lately; None: it knows no such call."""
        run = self._held.get(call_id)
        if run is not None:
            return run.call.by
        return None if self._finished is None else self._finished.owner(call_id)

    def count_bad(self, reason: str) -> None:
        """Count a request that could not be read; log the first one."""
        self.cells[BAD] += 1
        if self.cells[BAD] == 1:
            logger.error("a bad message was refused (%s); this worker logs no further ones", reason)

    def answer(
        self, queues: Sequence[str], query: Query, owner: str | None = None, voice: str | None = None
    ) -> QueryAnswer | None:
        """Return what is said to a question about this worker and its calls: see `Server.answer`."""
        from atasks.tracking import answering  # which a worker that nobody asks need not wait for

        return answering.answer(self, queues, query, owner, voice)

    def over(self, call: Call, error: Exception | None = None, reply: Reply | End | None = None) -> None:
        """A call that has come again is not to run again: it has ended, by this error where that is known, or
        nobody awaits it. Drop the journal that an earlier run has left, unless a try that comes later may want
        it. `reply`: it is about to be answered by this, and its journal stays until that is safe."""
        atask, journals = self.served.find(call.task), self.transport.journals
        if atask is None or not atask.resume or journals is None:
            return
        retry = atask.task_options.retry
        last = retry is None or (error is not None and retry.is_last(call.try_, error))
        if not last and not (isinstance(reply, Reply) and reply.status == Status.VALUE):
            return
        name = journal_name(key_of_run(call), atask.resume)
        if reply is None:
            journals.drop(name)
        else:
            journals.finish(name, call.id)

    def moved(self, call_id: str, ended: bool = False) -> None:
        """Another worker has been given this call, and may have ended it: end its run here."""
        run = self._held.get(call_id)
        if run is not None:
            what = "has ended elsewhere: so does its copy here" if ended else "goes on at another worker"
            logger.info("%s, call %s, %s", run.call.task, call_id, what)
            run.cancel(Reason.ELSEWHERE)

    def count_lost(self, call: Call) -> None:
        """Count a call that was lost with another worker, and is not tried again."""
        atask = self.served.find(call.task)
        self.counters.row(UNKNOWN if atask is None else call.task)[LOST] += 1
        self.over(call, WorkerLost("it died with its workers", call.attempt))
        if self.watching is not None:
            self.watching.lost(call)

    def _deadline(self, call: Call, delivery: Delivery | None = None) -> float | None:
        """When the call times out, in event loop time; not before its caller says so, as far as that is known."""
        if call.timeout_ms is None:
            return None
        waited = self.transport.waited(call, delivery)
        return self.loop.time() + min(call.timeout_ms / 1000, MAX_TIMEOUT) - waited

    # -- running

    def _fill(self) -> None:
        """A slot or a place in a pool may be free: start the calls that can start now, and let the transport have
        those that lack a place, or ask for more."""
        backlog = self._backlog
        if backlog.size:
            while self.slots.free and (run := backlog.take()) is not None:
                assert run.atask is not None, "deliver looked"
                self._start(run, run.atask)
            if backlog.waits_alone:
                return  # nothing else starts meanwhile
            for executor in backlog.lacking():
                self.transport.lacks_place(self, executor)
            if backlog.size and not self.slots.free:
                return
        self.transport.slots_changed(self)

    def _may_start_alone(self, run: HeldCall) -> bool:
        """Nothing else runs, or it waited long enough: a call that runs for hours must not keep a worker
        from its other calls."""
        patient = self.slots.free < self.concurrency and self.loop.time() < run.patient_until
        return not patient and self.pools.has_place(run.executor)

    def _resting(self) -> bool:
        """Return True if a call that waits to run alone does not keep others from starting now."""
        return self._turns.resting(self.held > self._backlog.count_alone)

    def _rested(self) -> None:
        if self._backlog.waits_alone:
            self._fill()
            self.transport.slots_changed(self)

    @property
    def alone(self) -> bool:
        """A call runs alone here, or waits to."""
        return self._backlog.waits_alone or (self._alone is not None and self._alone.slots > 0)

    def _start(self, run: HeldCall, task: BaseTask[..., Any]) -> None:
        if self._condemned is not None and run.call in self._condemned:
            self._refuse(run, ended_by_request(run))
            return
        deadline = run.deadline
        if deadline is not None:
            if deadline <= self.loop.time():
                self._refuse(run, status(run, Status.TIMED_OUT, "the deadline passed before it could start"))
                return
            run.timer = self.loop.call_at(deadline, run.cancel, Reason.TIMED_OUT, context=self.no_context)
        if run.alone:
            self._alone = run
            self._turns.begin_alone()
            run.slots = self.slots.take(self.concurrency)
        else:
            run.slots = 1
            self.slots.free -= 1  # this is `take`, without a call
        if task.executor is not None:
            run.place = self.pools.places[task.executor]
            run.place.take()
        call, row = run.call, run.row
        if call.attempt > 1:
            row[RETRIED] += 1
        waited = (int(time.time() * 1000) - call.sent_ms) * 1000  # the caller's clock tells no more
        if waited < 0:  # the clocks differ
            waited = 0
        row[WAIT_US] += waited
        row[WAIT + (waited.bit_length() if waited < LONGEST else LAST_BUCKET)] += 1
        if self._notes is not None:
            run.record = self._notes.enter(call)
        self.cells[BUSY] += 1
        if self.watching is not None:
            self.watching.held("started", run)
        watchdog = self._watchdog
        if watchdog.asleep:
            watchdog.wake()
        # As `apart`, without a call.
        call.task = task.name  # of equal texts one is kept, however many calls wait
        run.task = asyncio.Task(execute(run), loop=self.loop, name=task._run_name, context=Context())

    def forked(self) -> None:
        """In a child that a call has forked, the end of the call is that of the child: the call goes on in its
        parent, and what else is in this event loop as well."""
        self.is_forked = True
        self.ended = _leave  # type: ignore[method-assign]  # calls in the parent need not look

    def ended(self, run: HeldCall, reply: Reply | None) -> None:
        """A run that was started has ended, with this reply if there is anybody to reply to."""
        self.cells[BUSY] -= 1
        self._end(run, reply)
        if run.started:
            row = run.row
            took = int((time.perf_counter() - run.started) * 1e6) if reply is None else reply.run_us
            row[RUN_US] += took
            row[RUN + (took.bit_length() if took < LONGEST else LAST_BUCKET)] += 1

    async def _pass_on(self, run: HeldCall) -> None:
        """The atask of this call is not known here: takes no slot."""
        reply = await pass_on(run)
        if reply is None:
            self._end(run, None)
        else:
            self._refuse(run, reply)

    def _refuse(self, run: HeldCall, reply: Reply) -> None:
        """Answer a call that has not been started, and will not be."""
        run.row[REFUSED] += 1
        self._end(run, reply)

    def _end(self, run: HeldCall, reply: Reply | None) -> None:
        """Reply on every delivery of the call, or drop it, or give it back; then free the slot."""
        if run.timer is not None:
            run.timer.cancel()
        del self._held[run.call.id]  # as `_forget`, without a call
        if run.reporter is not None:
            run.reporter.finish()
        run.ended = True
        run.task = None  # the context of the task refers to the run: break the reference cycle
        last = reply if run.sender is None else self.streams.close(run.sender, reply)
        try:
            if last is not None:  # its caller waits for it, and nobody for what follows
                for delivery in run.deliveries:
                    delivery.reply(last)
                if self._finished is not None:
                    self._finished.add(run.call.id, last, run.call.by)
        finally:
            if self._empty is not None and not self._held:
                self._empty.set()
            if self._notes is not None and run.record is not None:
                self._notes.leave(run.record)
            if reply is None:
                self._count_unanswered(run)
            else:
                run.row[ENDED + reply.status] += 1
                if reply.status or calls.isEnabledFor(logging.DEBUG):
                    log_ending(run, reply)
            if self.watching is not None:
                tell_ending(self.watching, run, reply)
            if last is None:
                settle_unanswered(run)
            self._free(run)

    def _free(self, run: HeldCall) -> None:
        """Let others have the place and the slots of a call that has ended."""
        if run.place is not None:
            run.place.give()
        if self._alone is not None or self._turns.timer is not None:
            self._end_turn(run)
        if run.slots:
            slots, run.slots = run.slots, 0
            self.slots.give(slots)

    def _end_turn(self, run: HeldCall) -> None:
        if run is self._alone:
            self._alone = None
            self._turns.end_alone()
        else:
            self._turns.other_ended()

    def _count_unanswered(self, run: HeldCall) -> None:
        run.row[ENDED + (GIVEN_BACK if run.reason in RETURNED else WITHDRAWN)] += 1
        if run.reason in (Reason.WITHDRAWN, Reason.TIMED_OUT):
            log_ending(run, None)

    def _forget(self, run: HeldCall) -> None:
        del self._held[run.call.id]
        if self._empty is not None and not self._held:
            self._empty.set()


def _leave(run: HeldCall, reply: Reply | None) -> None:
    forks.leave()
