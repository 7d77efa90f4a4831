"""The counters at one moment, as plain objects: for metrics, probes, and answers to questions."""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

import math
import os
import time
import weakref
from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Final, Protocol

from msgspec import Meta, Struct

from atasks.tracking.counters import (
    BAD,
    BUCKETS,
    BUSY,
    ENDED,
    ENDINGS,
    LAG_ASKED,
    LAG_US,
    LOST,
    MAX_TASKS,
    OTHERS,
    PARKED,
    RECEIVED,
    REFUSED,
    RETRIED,
    RUN,
    RUN_US,
    SINCE_MS,
    SLOTS,
    WAIT,
    WAIT_US,
    WORKER,
    Counters,
    Table,
    callers,
    started,
)
from atasks.wire import Status

if TYPE_CHECKING:
    from atasks.tracking.counters import Row

__all__ = [
    "BOUNDS",
    "CallerCounts",
    "Histogram",
    "Snapshot",
    "TaskCounts",
    "WorkerCounts",
    "count_lost",
    "forget",
    "include",
    "read",
    "snapshot",
]

BOUNDS: Final = tuple(2**k / 1e6 for k in range(BUCKETS - 1))
"""The upper bounds of the buckets of a histogram, in seconds; the last bucket has none."""
MAX_SUM: Final = 1e15
"""Seconds that the calls of an atask may have taken together, as another process says."""
WORKER_LOST: Final = ENDINGS[Status.WORKER_LOST]
"""The ending of calls that are declared lost."""


class Histogram(Struct, frozen=True):
    """Times, counted in buckets that grow by a factor of two."""

    sum: Annotated[float, Meta(ge=0, le=MAX_SUM)] = 0.0
    """The sum of all times, in seconds."""
    buckets: list[Annotated[int, Meta(ge=0)]] = []
    """The number of times between one of `BOUNDS` and the next."""

    @property
    def count(self) -> int:
        """The number of times that were counted."""
        return sum(self.buckets)

    def quantile(self, share: float) -> float | None:
        """An upper bound, in seconds, of that share of the times, within a factor of two; None: there are none.

        Of a single time it is the time itself.
        """
        count, total = 0, self.count
        for index, number in enumerate(self.buckets):
            count += number
            if number and count >= share * total:
                bound = BOUNDS[index] if index < len(BOUNDS) else math.inf
                longer = total - max(math.ceil(share * total), 1) + 1  # those that take at least as long
                return min(bound, self.sum / longer)
        return None

    def __add__(self, other: "Histogram") -> "Histogram":
        if not self.buckets or not other.buckets:
            return self if self.buckets else other
        both = zip_longest(self.buckets, other.buckets, fillvalue=0)  # another version may have more of them
        buckets = [mine + theirs for mine, theirs in both]
        return Histogram(self.sum + other.sum, buckets)


class TaskCounts(Struct):
    """Calls of one atask, since a worker or a caller began."""

    task: str
    received: int = 0
    """At a caller: calls that it made."""
    started: int = 0
    retried: int = 0
    """Those started at a later attempt than the first."""
    refused: int = 0
    """Those answered without a start: the atask is not known, or the deadline has passed."""
    lost: int = 0
    """Calls that this worker declared lost with another one."""
    ended: dict[str, int] = {}
    """The number of calls for each ending, by the names in `ENDINGS`."""
    wait: Histogram = Histogram()
    """Times from the request to the start, by the clocks of both sides. Empty at a caller."""
    run: Histogram = Histogram()
    """Times from the start to the end; at a caller, from the request to the reply."""

    @property
    def endings(self) -> dict[str, int]:
        """The number of calls for each ending, those included that were declared lost."""
        if not self.lost:
            return self.ended
        return {**self.ended, WORKER_LOST: self.ended.get(WORKER_LOST, 0) + self.lost}

    def __add__(self, other: "TaskCounts") -> "TaskCounts":
        ended = {
            name: self.ended.get(name, 0) + other.ended.get(name, 0) for name in {**self.ended, **other.ended}
        }
        return TaskCounts(
            self.task,
            self.received + other.received,
            self.started + other.started,
            self.retried + other.retried,
            self.refused + other.refused,
            self.lost + other.lost,
            ended,
            self.wait + other.wait,
            self.run + other.run,
        )


class WorkerCounts(Struct):
    """One worker."""

    id: str
    namespace: str
    running: int
    """Calls that hold a slot, or wait to have it back."""
    parked: int
    """Calls that await other calls, and hold no slot."""
    waiting: int
    """Calls that it holds and has not started."""
    slots: int
    loop_lag: float
    """Seconds that the event loop took for its last turn that was measured, or takes by now: it is measured while
    calls run."""
    bad: int
    """Messages that it could not read."""
    since: float
    """When it began: wall clock, in seconds."""
    tasks: list[TaskCounts]


class CallerCounts(Struct):
    """The calls that this process has made in one namespace."""

    namespace: str
    pending: int
    """Those awaited now."""
    tasks: list[TaskCounts]


class Snapshot(Struct):
    """All that the counters of this process say, and, in a supervisor, those of its worker processes."""

    at: float
    """Wall clock, in seconds."""
    workers: list[WorkerCounts]
    callers: list[CallerCounts]
    ended: list[TaskCounts] = []
    """The counts of workers that have ended, by atask."""

    def tasks(self) -> dict[str, TaskCounts]:
        """The sums over all workers, by atask; no number in it falls while this process lives."""
        return total([*self.ended, *(item for worker in self.workers for item in worker.tasks)])


class Source(Protocol):
    """A supervisor, which adds the workers of its processes to the snapshot of this one."""

    def counts(self) -> list[WorkerCounts]: ...


_workers: dict[int, Counters] = {}
_ended: dict[str, TaskCounts] = {}
"""The counts of workers that have ended, by atask: they outlive whoever has counted them."""
_sources: weakref.WeakSet[Source] = weakref.WeakSet()


def include(source: Counters | Source) -> None:
    """Have `snapshot` show the counters of a worker, or those that a supervisor has of its processes."""
    if isinstance(source, Counters):
        _workers[id(source)] = source
    else:
        _sources.add(source)


def forget(counters: Counters) -> None:
    """A worker has ended: show it no longer, and keep its counts."""
    if _workers.pop(id(counters), None) is not None:
        keep(read(counters.table, counters.owner))


def keep(workers: Iterable[WorkerCounts]) -> None:
    """Have the sums of this process contain what these workers have counted, which have ended."""
    _ended.update(total([*_ended.values(), *(item for worker in workers for item in worker.tasks)]))


def count_lost(task: str) -> None:
    """Count a call of a worker that has ended, which no worker declares lost, but the hub in this process."""
    name = task if task in _ended or len(_ended) < MAX_TASKS else OTHERS
    _ended[name] = _ended.get(name, TaskCounts(name)) + TaskCounts(name, lost=1)


def snapshot() -> Snapshot:
    """The counters of the workers and callers of this process, and of the processes that it supervises.

    Reads memory only: it takes well under a millisecond for tens of atasks, and can be called from any thread."""
    found = Snapshot(time.time(), [], [])
    for counters in list(_workers.values()):
        found.workers += read(counters.table, counters.owner)
    for namespace, counters in callers.sums().items():
        tasks = [_task(name, row) for name, row in counters.rows.items()]
        pending = sum(item.received - sum(item.ended.values()) for item in tasks)
        found.callers.append(CallerCounts(namespace, pending, tasks))
    for source in list(_sources):
        found.workers += source.counts()
    found.ended = list(_ended.values())
    return found


def read(table: Table, owner: str | None = None) -> list[WorkerCounts]:
    """The workers whose rows are in a table; `owner`: only that one."""
    workers: dict[str, WorkerCounts] = {}
    for name, row in table.rows():
        kind, worker, rest = (*name.split("\0", 2), "", "")[:3]
        if owner is not None and worker != owner:
            continue
        if kind == WORKER:
            workers[worker] = WorkerCounts(
                worker,
                rest,
                max(row[BUSY] - row[PARKED], 0),
                row[PARKED],
                0,
                row[SLOTS],
                _lag(row),
                row[BAD],
                row[SINCE_MS] / 1000,
                [],
            )
        elif worker in workers:
            workers[worker].tasks.append(_task(rest, row))
    for found in workers.values():
        left = sum(item.received - sum(item.ended.values()) for item in found.tasks)
        found.waiting = max(left - found.running - found.parked, 0)
    return list(workers.values())


def total(items: Iterable[TaskCounts]) -> dict[str, TaskCounts]:
    """The sums by atask."""
    sums: dict[str, TaskCounts] = {}
    for item in items:
        known = sums.get(item.task)
        sums[item.task] = item if known is None else known + item
    return sums


def _task(name: str, row: "Row") -> TaskCounts:
    return TaskCounts(
        name,
        row[RECEIVED],
        started(row),
        row[RETRIED],
        row[REFUSED],
        row[LOST],
        {ending: row[ENDED + index] for index, ending in enumerate(ENDINGS) if row[ENDED + index]},
        Histogram(row[WAIT_US] / 1e6, list(row[WAIT : WAIT + BUCKETS])),
        Histogram(row[RUN_US] / 1e6, list(row[RUN : RUN + BUCKETS])),
    )


def _lag(row: "Row") -> float:
    asked = row[LAG_ASKED]
    waits = time.monotonic() - asked / 1e6 if asked else 0.0
    return max(row[LAG_US] / 1e6, waits, 0.0)


os.register_at_fork(after_in_child=_workers.clear)
os.register_at_fork(after_in_child=_ended.clear)
