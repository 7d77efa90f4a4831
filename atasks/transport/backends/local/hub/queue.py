"""Calls that wait at the hub for a worker, and the workers of their queue."""

from __future__ import annotations

from asyncio import TimerHandle
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from atasks import wire
from atasks.options import MAX_ATTEMPTS, MAX_PRIORITY, Executor
from atasks.wire import Awaits, Call, Reply, Status

if TYPE_CHECKING:
    from atasks.transport.backends.local.hub.peer import Peer

__all__ = ["OWN", "QueuedCall", "Told", "WorkQueue"]

T = TypeVar("T")

OWN = "own "
"""The name of the queue of one worker begins with this."""
MAX_TOLD: Final = 10_000
"""Atasks of a namespace of which a hub keeps the executor, and the attempts."""
LANES = 2 * (MAX_PRIORITY + 1)


class QueuedCall(Struct, eq=False):
    """A call that has not ended: it waits in a queue, or a worker has it."""

    call: Call
    caller: Peer | None
    """The peer that awaits the call; None: nobody does any more, and it runs nevertheless."""
    queue: WorkQueue
    priority: int
    size: int
    """Bytes, roughly."""
    owner: int = 0
    """The process that sent it; 0: one that does not await it."""
    alone: bool = False
    """True for a last attempt: no other call may run beside it."""
    begun: bool = False
    """True once the last attempt has begun at the worker that has it, and did not only wait there to be alone."""
    delayed: TimerHandle | None = None
    """The timer that lets the call into its queue; None: it waits there, or a worker has it."""
    kept: bool = False
    """True if its reply goes into a record."""
    journal: str = ""
    """The journal into which its reply goes too; empty: into none."""
    worker: Peer | None = None
    """The worker that has the call."""
    since: float = 0.0
    """When it was handed to that worker (event loop time)."""
    lane: OrderedDict[str, QueuedCall] | None = None
    """The lane in which it waits."""
    deadline: float | None = None
    """When its caller will not wait any longer (event loop time)."""
    ahead: int = 0
    """Items of a stream that were sent to its caller since that has said where it is."""
    ahead_bytes: int = 0
    """Their bytes."""
    window: int = 0
    """Items of a stream that its caller lets its worker send ahead; 0: as many as the call says."""

    def __repr__(self) -> str:  # without the arguments, which a debugging event loop would log
        return f"<queued {wire.describe(self.call)}>"

    @property
    def most(self) -> int:
        """Return the number of attempts that the call has: it may ask for some, and its atask's own definition
        may allow more."""
        call = self.call
        if call.max_attempts <= MAX_ATTEMPTS or self.kept:
            return call.max_attempts
        return min(call.max_attempts, max(MAX_ATTEMPTS, self.queue.attempts.get(call.task, 0)))

    def goes_on(self, items: wire.Item) -> bool:
        """Count items of a stream that are for its caller. Return False if there are more than a worker sends that
        keeps to the window, all of it twice: the caller may read slowly, and then they would wait here."""
        if self.caller is None:
            return False
        if not items.payloads:  # a question, without whose answer the stream might not go on
            return not self.caller.link.clogged
        if self.ahead > 2 * (self.window or self.call.credit) or self.ahead_bytes > 2 * wire.STREAM_BYTES:
            return False
        self.ahead += len(items.payloads)
        self.ahead_bytes += sum(map(len, items.payloads))
        return True

    def lost(self, what: str, worker: str = "", ran: float | None = None, awaited: Awaits | None = None) -> Reply:
        """The reply that says that it ends with its worker, which had it for so many seconds, as it awaited a
        call."""
        call = self.call
        return wire.ended(
            call.id,
            Status.WORKER_LOST,
            f"task {call.task!r}, call {call.id}, {what}",
            attempts=call.attempt,
            last_worker=worker,
            ran=ran,
            awaits=awaited,
        )


class Told:
    """All that workers of one namespace have said of their atasks, for as long as it has a queue."""

    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}
        """The executor of each atask whose calls wait in a queue beside the one that they name."""
        self.attempts: dict[str, int] = {}
        """The attempts of atasks whose calls may have more than others."""

    def learn(self, executors: Mapping[str, Executor], attempts: Mapping[str, int]) -> None:
        """Take in what a worker says, of so many atasks as are kept. A worker says of the calls of others that it
        gives back what they need."""
        _learn(self.executors, executors)
        _learn(self.attempts, attempts)


def _learn(known: dict[str, T], said: Mapping[str, T]) -> None:
    for task, value in said.items():
        if task in known or len(known) < MAX_TOLD:
            known[task] = value


class WorkQueue:
    """The calls that wait in one work queue: urgent ones first, then those made by calls, then the oldest.

    Calls of blocking functions, which also need a place in a pool of their worker, wait in queues beside it, one
    for each executor, so that others need not wait behind them.
    """

    def __init__(self, namespace: str, name: str, told: Told, executor: Executor | None = None) -> None:
        self.namespace = namespace
        self.name = name
        self.executor: Executor | None = executor
        """The executor that its calls need; None: this is the queue itself, and not one beside it."""
        self._told = told
        self.executors = told.executors
        self.attempts = told.attempts
        self.workers: list[Peer] = []
        self.paused = False
        """True while its calls are not handed out."""
        self._lanes: list[OrderedDict[str, QueuedCall]] = [OrderedDict() for _ in range(LANES)]
        self._alone: OrderedDict[str, QueuedCall] = OrderedDict()
        self._refused: dict[tuple[int | str, ...], OrderedDict[str, QueuedCall]] = {}
        """Lanes of calls whose atask some workers lack, by their rank and those workers: a worker that lacks it is
        not to look through all of them."""
        self.size = 0
        """The number of calls that wait here."""

    @property
    def own(self) -> bool:
        """True for the queue of one worker: nobody else has its calls."""
        return self.name.startswith(OWN)

    def push(self, queued: QueuedCall, front: bool = False) -> None:
        """Let it wait here, behind its equals, or before them."""
        rank = self._rank(queued)
        if queued.alone:
            lane = self._alone
        elif queued.call.seen:
            lane = self._refused.setdefault((rank, *sorted(queued.call.seen)), OrderedDict())
        else:
            lane = self._lanes[rank]
        lane[queued.call.id] = queued
        if front:
            lane.move_to_end(queued.call.id, last=False)
        queued.lane = lane
        self.size += 1
        if queued.caller is not None:
            queued.caller.queued_bytes += queued.size

    def _rank(self, queued: QueuedCall) -> int:
        priority = min(max(queued.priority, 0), MAX_PRIORITY)
        return 2 * (MAX_PRIORITY - priority) + (queued.call.parent is None)

    def calls(self) -> list[QueuedCall]:
        """Return the calls that wait here."""
        lanes = (self._alone, *self._lanes, *self._refused.values())
        return [queued for lane in lanes for queued in lane.values()] if self.size else []

    def remove(self, queued: QueuedCall) -> None:
        """Remove a call that waits here no longer."""
        assert queued.lane is not None, "it waits here"
        del queued.lane[queued.call.id]
        if not queued.lane and not queued.alone and queued.call.seen:
            del self._refused[self._rank(queued), *sorted(queued.call.seen)]
        queued.lane = None
        self.size -= 1
        if queued.caller is not None:
            queued.caller.queued_bytes -= queued.size
            queued.caller.may_send_again()

    def pop(self, worker: Peer) -> QueuedCall | None:
        """The call that this worker is to have next; None if there is none for it."""
        queued = self._first(worker)
        if queued is not None:
            self.remove(queued)
        return queued

    def _first(self, worker: Peer) -> QueuedCall | None:
        if self._alone and worker.may_have_alone(self.size > len(self._alone)):
            for queued in self._alone.values():
                if self.may_have(worker, queued.call):
                    return queued
        if not self._refused:
            lane = next(filter(None, self._lanes), None)
            return None if lane is None else next(iter(lane.values()))
        for rank, lane in enumerate(self._lanes):
            if (refused := self._first_refused(rank, worker)) is not None:
                return refused  # it came before those that no worker has had yet
            if lane:
                return next(iter(lane.values()))
        return None

    def _first_refused(self, rank: int, worker: Peer) -> QueuedCall | None:
        for key, lane in self._refused.items():
            if key[0] == rank:
                queued = next(iter(lane.values()))
                if self.may_have(worker, queued.call):
                    return queued
        return None

    def may_have(self, worker: Peer, call: Call) -> bool:
        """Return True if the worker is not known to lack the atask, or if all workers are."""
        seen = call.seen or ()
        return worker.worker_id not in seen or all(other.worker_id in seen for other in self.workers)

    def best(self, call: Call, caller: Peer | None = None) -> Peer | None:
        """The worker with most room that may have the call now; None if it has to wait. `caller`: whose run makes
        the call, if one does, has a slot more: that of the run, which awaits the call."""
        found: Peer | None = None
        room = 0
        for worker in self.workers:
            its = worker.room_for(self)
            if worker is caller and its > 0 and call.parent is not None:
                its += 1
            if its > room and not worker.link.clogged and (not call.seen or self.may_have(worker, call)):
                found, room = worker, its
        return found

    def served_beside(self, worker: Peer, seen: list[str]) -> bool:
        """Return True if another worker, which is not in `seen`, serves the queue."""
        return any(other is not worker and other.worker_id not in seen for other in self.workers)
