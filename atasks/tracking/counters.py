"""Counters of workers and callers: whole numbers in rows, one row for each atask, always on.

A `Table` holds rows of 64-bit numbers. Those of a worker process that has a supervisor lie in memory that both
share, so the supervisor reads them without asking, and after the process has died too; elsewhere they are lists,
to which Python adds faster. Counting is an addition to a cell of a row, written where the thing
happens: `row[RECEIVED] += 1`. Only one thread adds to a cell.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from atasks.errors import CallConnectionLost, CallError, CallTimeout, NotConnected, WorkerLost

if TYPE_CHECKING:
    Row = memoryview[int] | list[int]

__all__ = [
    "BAD",
    "BUCKETS",
    "BUSY",
    "CONNECTION_LOST",
    "ENDED",
    "ENDINGS",
    "GIVEN_BACK",
    "KEPT",
    "LAG_ASKED",
    "LAG_US",
    "LAST_BUCKET",
    "LONGEST",
    "LOST",
    "MAX_TASKS",
    "NO_REPLY",
    "OTHER",
    "OTHERS",
    "PARKED",
    "RECEIVED",
    "REFUSED",
    "RETRIED",
    "RUN",
    "RUN_US",
    "SINCE_MS",
    "SLOTS",
    "TABLE_SIZE",
    "UNKNOWN",
    "WAIT",
    "WAIT_US",
    "WITHDRAWN",
    "Counters",
    "Table",
    "callers",
    "failed",
    "replied",
    "started",
]

ENDINGS: Final = (
    "value",
    "raised",
    "cancelled",
    "timed_out",
    "unknown_task",
    "worker_lost",
    "encode_error",
    "decode_error",
    "too_large",
    "failed",
    "withdrawn",
    "given_back",
    "kept",
    "connection_lost",
    "refused",
    "other",
)
"""The endings of calls: the first ten are those of `wire.Status`, in its order. `withdrawn`: the await was
cancelled; `given_back`: another worker has the call; `kept`: it was submitted; `refused`: it never left its
caller."""
WITHDRAWN: Final = 10
GIVEN_BACK: Final = 11
KEPT: Final = 12
CONNECTION_LOST: Final = 13
NO_REPLY: Final = 14
OTHER: Final = 15

BUCKETS: Final = 36
"""Buckets of a histogram of times: bucket `k` counts those below 2 ** k microseconds that the one before does
not count. The last one counts all that are longer (9.5 hours and more)."""
LAST_BUCKET: Final = BUCKETS - 1
LONGEST: Final = 2**LAST_BUCKET
"""Microseconds; the bucket of a shorter time is its `bit_length`."""

# The cells of the row of an atask. `RECEIVED` counts at a caller what it has sent. The calls that were started are
# those in the buckets of `WAIT`: there is no cell of their own.
RECEIVED: Final = 0
RETRIED: Final = 1
"""Those started that were not at their first attempt."""
REFUSED: Final = 2
"""Those answered without a start: an atask that is not known, a deadline that has passed."""
LOST: Final = 3
"""Calls that this worker declared lost with another one."""
WAIT_US: Final = 4
"""The sum of the times from the request to the start, in microseconds, by the clocks of caller and worker."""
RUN_US: Final = 5
"""The sum of the times from the start to the end; at a caller, from the request to the reply."""
ENDED: Final = 6
WAIT: Final = ENDED + len(ENDINGS)
RUN: Final = WAIT + BUCKETS
CELLS: Final = RUN + BUCKETS

# The cells of the row of a worker itself.
BUSY: Final = 0
"""Calls that were started and have not ended: they run, or are parked."""
PARKED: Final = 1
SLOTS: Final = 2
BAD: Final = 3
"""Messages that could not be read."""
LAG_US: Final = 4
"""Microseconds that a turn of the event loop took, when it was measured last."""
LAG_ASKED: Final = 5
"""When it was asked for a turn that has not come yet: microseconds of the monotonic clock; 0: none is due."""
SINCE_MS: Final = 6
"""When it began: wall clock in milliseconds."""

UNKNOWN: Final = "(unknown)"
"""Stands for all atasks that a worker does not know: their names may be anything, and any number."""
OTHERS: Final = "(others)"
"""Stands for those for which a table has no row left."""

MAX_TASKS: Final = 1000
NAME_BYTES: Final = 1024 - 8 * CELLS
ROW_BYTES: Final = NAME_BYTES + 8 * CELLS
ROWS: Final = 512
TABLE_SIZE: Final = ROWS * ROW_BYTES
"""Bytes of a table in shared memory; what is not used takes none."""


class Table:
    """Named rows of counters: in memory of this process, or in memory that is shared with another one."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """`memory`: `TABLE_SIZE` bytes, in which other tables may have written rows before."""
        self._memory = memory
        self._own: dict[str, Row] = {}

    def add(self, name: str) -> Row:
        """A new row of that name, or, where there is no room left, one that has that name no longer."""
        if self._memory is None:
            row: Row = [0] * CELLS
            self._own[name] = row
            return row
        for index in range(ROWS):
            start = index * ROW_BYTES
            if not self._memory[start]:
                if index == ROWS - 1:
                    name = f"{name.rpartition(_SEPARATOR)[0]}{_SEPARATOR}{OTHERS}"
                written = name.encode(errors="replace")[:NAME_BYTES]
                self._memory[start : start + len(written)] = written
                return self._cells(index)
        return self._cells(ROWS - 1)

    def _cells(self, index: int) -> Row:
        assert self._memory is not None
        start = index * ROW_BYTES
        return self._memory[start + NAME_BYTES : start + ROW_BYTES].cast("q")

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Each name with its row."""
        if self._memory is None:
            yield from self._own.items()
            return
        for index in range(ROWS):
            start = index * ROW_BYTES
            if not self._memory[start]:
                return
            name = bytes(self._memory[start : start + NAME_BYTES]).rstrip(b"\0").decode(errors="replace")
            yield name, self._cells(index)

    @property
    def busy(self) -> int:
        """Calls that the workers with rows here were running, or had parked."""
        return sum(row[BUSY] for name, row in self.rows() if name.startswith(WORKER))


_SEPARATOR: Final = "\0"
WORKER: Final = "w"
CALLED: Final = "t"


class Counters:
    """The counters of one worker, or of one transport's caller."""

    def __init__(self, owner: str, namespace: str, table: Table | None = None) -> None:
        """`owner`: the id of a worker; empty for a caller."""
        self.owner = owner
        self.namespace = namespace
        self.table = Table() if table is None else table
        self.own = self.table.add(_SEPARATOR.join((WORKER, owner, namespace)))
        """The row of the worker itself."""
        self.rows: dict[str, Row] = {}
        """Name of an atask -> its row: for `get`, where `row` would be a call more."""

    def row(self, task: str) -> Row:
        """The row of an atask, which is made where there is none; that of others, where there are very many."""
        row = self.rows.get(task)
        if row is None:
            if len(self.rows) >= MAX_TASKS:
                return self.rows.get(OTHERS) or self.rows.setdefault(
                    OTHERS, self.table.add(_SEPARATOR.join((CALLED, self.owner, OTHERS)))
                )
            row = self.rows[task] = self.table.add(_SEPARATOR.join((CALLED, self.owner, task)))
        return row

    @property
    def started(self) -> int:
        """Calls that were started so far."""
        return sum(started(row) for row in list(self.rows.values()))

    def add(self, other: Counters) -> None:
        """Add what another one has counted."""
        for task, row in other.rows.items():
            mine = self.row(task)
            for cell in range(CELLS):
                mine[cell] += row[cell]


def started(row: Row) -> int:
    """The calls of an atask that were started: each of them has waited, if only for a microsecond."""
    return sum(row[WAIT : WAIT + BUCKETS])


class Callers:
    """The counters of all transports over which this process has made calls. Those of transports that are gone are
    added up, so that no number ever falls."""

    def __init__(self) -> None:
        self._live: dict[int, Counters] = {}
        self._gone: dict[str, Counters] = {}
        self._ended: deque[int] = deque()
        """Those live ones whose transports are gone: the collector, which may run at any point, only adds here."""

    def new(self, transport: object, namespace: str) -> Counters:
        """Counters for the calls over a transport."""
        counters = Counters("", namespace)
        number = id(counters)
        self._retire()
        self._live[number] = counters
        weakref.finalize(transport, self._ended.append, number).atexit = False
        return counters

    def _retire(self) -> None:
        while self._ended:
            counters = self._live.pop(self._ended.popleft(), None)
            if counters is not None and counters.rows:
                self._gone.setdefault(counters.namespace, Counters("", counters.namespace)).add(counters)

    def sums(self) -> dict[str, Counters]:
        """Namespace -> what was counted there."""
        self._retire()
        found: dict[str, Counters] = {}
        for counters in (*self._gone.values(), *self._live.values()):
            if counters.rows:
                found.setdefault(counters.namespace, Counters("", counters.namespace)).add(counters)
        return found

    def clear(self) -> None:
        """Forget all: this process is the fork of another one."""
        self._live.clear()
        self._gone.clear()
        self._ended.clear()


def failed(error: BaseException) -> int:
    """Which of `ENDINGS` it is when an await raises this without a reply."""
    for kind, ending in _FAILED.items():
        if isinstance(error, kind):
            return ending
    return OTHER


_FAILED: Final[dict[type[BaseException], int]] = {
    asyncio.CancelledError: WITHDRAWN,
    CallTimeout: ENDINGS.index("timed_out"),
    WorkerLost: ENDINGS.index("worker_lost"),
    CallConnectionLost: CONNECTION_LOST,
    NotConnected: NO_REPLY,
    CallError: NO_REPLY,
}


def replied(row: Row, status: int, began: float | None = None) -> None:
    """Count the reply to a call that was sent at `began` (`time.perf_counter`); None: its time is not counted."""
    row[ENDED + (status if status < WITHDRAWN else OTHER)] += 1
    if began is not None:
        took = int((time.perf_counter() - began) * 1_000_000)
        row[RUN_US] += took
        row[RUN + (took.bit_length() if took < LONGEST else LAST_BUCKET)] += 1


callers: Final = Callers()
os.register_at_fork(after_in_child=callers.clear)
