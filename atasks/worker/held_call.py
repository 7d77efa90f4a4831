"""A call that a worker holds."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from atasks.current import CurrentCall
from atasks.errors import TooManyParked
from atasks.progress import Progress
from atasks.tracking.counters import PARKED
from atasks.transport.delivery import Delivery
from atasks.wire import Call, Status, describe
from atasks.worker.reporter import Reporter

if TYPE_CHECKING:
    from atasks.definitions import BaseTask
    from atasks.options import Executor
    from atasks.resume.journal import Journal
    from atasks.tracking.counters import Row
    from atasks.wire import Reply
    from atasks.worker.backlog import Lane
    from atasks.worker.limited import TokenNotes
    from atasks.worker.slots import Slots
    from atasks.worker.stream_sender import StreamSender
    from atasks.worker.worker import Worker

__all__ = ["RETURNED", "HeldCall", "Reason"]


class Reason(enum.Enum):
    """Why a run was cancelled by the worker."""

    WITHDRAWN = enum.auto()
    """The await of the call has ended."""
    TIMED_OUT = enum.auto()
    DRAINED = enum.auto()
    ENDED = enum.auto()
    """Somebody else wants it to end."""
    PASSED_ON = enum.auto()
    """Not cancelled: this worker does not know its atask."""
    ELSEWHERE = enum.auto()
    """Another worker has the call, and goes on with it."""
    AWAITED_AGAIN = enum.auto()
    """Withdrawn, and then sent again by its caller, which had lost its connection."""


RETURNED: Final = (Reason.DRAINED, Reason.PASSED_ON, Reason.AWAITED_AGAIN)
"""Ends after which another run of the call is to come: the worker gives it back."""
SAME_DEADLINE: Final = 0.05
"""Seconds between two ends of one deadline at most: a nested call takes its own over in whole milliseconds."""


LONGEST_WAIT: Final = 0.005
"""Seconds for which a run that goes on may wait until its turn of the event loop has come."""


class HeldCall(Struct, eq=False):
    """A call that a worker holds: not started, running, or parked."""

    worker: Worker
    call: Call
    deliveries: tuple[Delivery, ...]
    loop: asyncio.AbstractEventLoop
    atask: BaseTask[..., Any] | None
    """The atask that serves the call; None: this worker has none of that name."""
    row: Row
    """The counters of its atask."""
    deadline: float | None = None
    """Event loop time."""
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    reason: Reason | None = None
    sender: StreamSender | None = None
    """The items that were sent, if the run is a stream that has started."""
    started: float = 0.0
    """When it began, by `time.perf_counter()`; 0: it has not."""
    awaits: int = 0
    """Remote awaits made by this run that are pending."""
    slots: int = 0
    """Slots that it holds: one, or all of the worker's if it runs alone."""
    ever_parked: bool = False
    """True once the run has awaited another call."""
    work: float = 0.0
    """Seconds of work until it parked last, and of its steps since."""
    resumed: float = 0.0
    """When it took a slot again, by `time.perf_counter()`; 0: it has not parked yet."""
    waits_turn: bool = False
    """True if then a task of its own was told: it goes on when its turn of the event loop has come."""
    ended: bool = False
    alone: bool = False
    """True for a last attempt: no other call should run beside it."""
    permit: Callable[[], Coroutine[Any, Any, bool]] | None = None
    """Asked right before it begins: whether it may, still. If not, nobody is told how it ended."""
    patient_until: float = 0.0
    """If it runs alone: when it stops waiting for others to end (event loop time)."""
    lane: Lane | None = None
    """The lane of the worker's backlog in which the call waits, or waited last."""
    turn: int = 0
    """When it came there: the least one goes first."""
    place: Slots | None = None
    """The pool in which it holds a place; a function in a thread holds it itself."""
    progress: Progress | None = None
    """The last report of the call, by `current_call().report()`."""
    reporter: Reporter | None = None
    """Hands the reports on; None: nobody wanted any so far."""
    journal: Journal | None = None
    """The steps that it has done, if it is one that resumes; None: it has done none."""
    last_awaited: Call | None = None
    """The call that it made last, while that is awaited, or if that was cancelled, or timed out, with it."""
    record: int | None = None
    """The record in the supervisor's memory that names it, while it runs; None: there is none."""
    tokens: TokenNotes | None = None
    """The tokens of limits that it waits for and holds; None: it has never wanted one."""
    _current: CurrentCall | None = None

    def __repr__(self) -> str:  # without the arguments, which a debugging event loop would log
        return f"<run of {describe(self.call)}>"

    async def may_begin(self) -> bool:
        """Ask the transport once, if it wants to be asked."""
        permit, self.permit = self.permit, None
        return permit is None or await permit()

    @property
    def executor(self) -> Executor | None:
        """The executor of its function."""
        return None if self.atask is None else self.atask.executor

    @property
    def queue(self) -> str:
        """The work queue that it came from; where its transport does not say, or has taken it back, the one that
        its atask names."""
        queue = self.deliveries[-1].queue if self.deliveries else ""
        if not queue and self.atask is not None:
            queue = self.atask.task_options.queue or ""
        return queue or self.worker.transport.queue

    @property
    def ran(self) -> float | None:
        """For how many seconds it has run; None: it has not begun."""
        return time.perf_counter() - self.started if self.started else None

    @property
    def current(self) -> CurrentCall:
        """The object that `current_call()` returns in this run."""
        if self._current is None:
            call = self.call
            self._current = CurrentCall(
                call.id,
                call.attempt,
                self.deadline,
                call.parent,
                call.root or call.id,
                self.worker.state,
                call.key or call.id,
                call.try_,
                call.task,
                self.queue,
            )
        return self._current

    def answered(self, call: Call, reply: Reply) -> None:
        """Note that a call it awaited has ended. One that ended at the run's own deadline, which nested calls
        inherit, stays in `last_awaited`: either may be told first, and the run ends because of that call."""
        shared = (
            self.deadline is not None
            and reply.status == Status.TIMED_OUT
            and self.loop.time() > self.deadline - SAME_DEADLINE
        )
        if self.last_awaited is call and not shared:
            self.last_awaited = None

    def is_here(self) -> bool:
        """Return True if the code that asks runs in the event loop of this call, which has not ended."""
        return not self.ended and self.loop is asyncio.get_running_loop()

    @property
    def awaited(self) -> tuple[str, str] | None:
        """A call that it awaits, or awaited when it was cancelled: its id, and its atask."""
        call = self.last_awaited
        return None if call is None else (call.id, call.task)

    def try_again(self, call: Call) -> None:
        """The run goes on as this one, the next try of its call."""
        if self.journal is not None:
            self.journal.leave()
            self.journal = None
        self.call = call
        self._current = None

    def tell(self, progress: Progress) -> None:
        """The call says how far it is. Called in any thread."""
        call = self.call
        self.progress = progress._replace(attempt=call.attempt, try_=call.try_)
        if self.reporter is not None:
            self.reporter.changed()
        elif (call.reports or self.worker.watching is not None) and not self.ended:
            self.reporter = Reporter(self)
            self.reporter.changed()

    def worked(self) -> float:
        """Return the seconds for which it has had a slot, and those of its steps while it was parked. Where it had
        a slot while it waited its turn among others it has a part of the time; of more than `LONGEST_WAIT` each
        time that is work of its own."""
        since = self.resumed or self.started
        crowd, now = self.worker.slots.crowd(since)
        if not self.slots:
            return self.work
        had = now - since
        if self.waits_turn or asyncio.current_task(self.loop) is not self.task:
            had = max(had / crowd, had - LONGEST_WAIT)
        return self.work + had

    def park(self, bounded: bool = True) -> None:
        """A remote await begins: give the slot up. If bounded, raises TooManyParked at the worker's bound."""
        if self.awaits == 0:
            worker = self.worker
            if worker.cells[PARKED] >= worker.max_parked and bounded:
                raise TooManyParked(
                    f"{self.call.task} may not await another call: this worker holds {worker.parked} parked "
                    "calls, its limit; add workers, raise max_parked, or start fewer calls at once"
                )
            worker.cells[PARKED] += 1
            if worker.transport.measures_work:
                self.work = self.worked()
            self.ever_parked = True
            self.awaits = 1
            if worker.watching is not None:
                worker.watching.held("parked", self)
            self.free_slots()
        else:
            self.awaits += 1

    async def unpark(self, give_up: Callable[[], None] | None = None) -> None:
        """A remote await has ended: go on when there is a slot, if it was the last one.

        `give_up` is called if this is cancelled while it waits for the slot. What was awaited may go on still,
        if it was the next item of a stream, and may hold that slot.
        """
        self.awaits -= 1
        if self.awaits == 0:
            self.worker.cells[PARKED] -= 1
            if self.ended:
                return
            slots = self.worker.slots
            if slots.free and not self.slots:  # as `_resume`, which need not wait
                slots.free -= 1
                self._took_slot()
            else:
                await self._resume(give_up)
        elif self.worker.transport.measures_work:
            self.worker.slots.goes_on(self)

    async def _resume(self, give_up: Callable[[], None] | None) -> None:
        """Take a slot, unless meanwhile it ends, or parks again, or resumes otherwise. If it is cancelled it waits
        on nevertheless: it goes on, if only to clean up, with a slot, as everything that runs."""
        slots = self.worker.slots
        try:
            await slots.retake()
        except asyncio.CancelledError:
            if give_up is not None:
                give_up()
            if not self._needs_no_slot() and await slots.retake_in_spite(self._needs_no_slot):
                self._took_slot()
            raise
        self._took_slot()

    def _took_slot(self) -> None:
        if self._needs_no_slot():
            self.worker.slots.give()
        else:
            self.slots = 1
            if self.worker.transport.measures_work:
                self.waits_turn = asyncio.current_task(self.loop) is not self.task
                self.resumed = self.worker.slots.crowd()[1]
            if self.worker.watching is not None:
                self.worker.watching.held("resumed", self)

    def _needs_no_slot(self) -> bool:
        return bool(self.ended or self.awaits or self.slots)

    def free_slots(self) -> None:
        """Give back the slots that it holds."""
        held, self.slots = self.slots, 0
        if held:
            self.worker.slots.give(held)

    def cancel(self, reason: Reason) -> None:
        """Cancel the task that runs it, once."""
        if self.reason is None and self.task is not None:
            self.reason = reason
            # After its first step, which is scheduled already: a task cancelled before never runs its `finally`.
            self.loop.call_soon(self.task.cancel)
