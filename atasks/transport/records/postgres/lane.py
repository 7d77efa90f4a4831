"""One connection to the database, over which orders are carried out, many of a kind with one statement."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from atasks.errors import NotConnected, RecordsUnavailable
from atasks.pauses import pauses

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = ["Lane", "Order", "Work"]

logger = logging.getLogger("atasks.records")

AT_ONCE: Final = 1000
"""Orders of one statement, at most."""
BYTES_AT_ONCE: Final = 8 * 2**20
STATEMENT_SECONDS: Final = 30.0
"""A statement that takes longer has lost its connection."""
BACKOFF: Final = (0.05, 5.0)
"""Seconds before the first and, at most, before any later attempt to reconnect."""
PASSING: Final = ("08", "25", "40", "53", "55", "57", "58")
"""Classes of errors that pass: connections, read-only servers, conflicts, resources, locks, shutdowns, disks."""

Work = Callable[["AsyncConnection[Any]", Sequence["Order"]], Awaitable[Sequence[Any]]]
"""Carries out orders of one kind, and returns what each of them gives, in their order."""


class Order:
    """Something to be written or read, for one record."""

    __slots__ = ("done", "row", "size", "work")

    def __init__(self, work: Work, row: Any, size: int = 0) -> None:
        self.work = work
        self.row = row
        self.size = size
        """Bytes, roughly."""
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Lane:
    """Carries out orders over one connection, which is restored when it is lost.

    Orders that come while a statement is under way share the next one. An order is carried out once the database
    has said so: after a lost connection it is carried out again, so doing one twice must be as good as once. One
    that nobody awaits any more is dropped, unless it is under way.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection[Any]]], reason: Callable[[Any], str]
    ) -> None:
        """`connect()` opens a connection; `reason(error)` says what was wrong, without what is secret."""
        self._connect = connect
        self._reason = reason
        self._connection: AsyncConnection[Any] | None = None
        self._orders: deque[Order] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = ""
        """The reason why orders are refused; empty: they are not."""
        self.trouble = ""
        """The reason why nothing is carried out just now; empty: nothing is known to be wrong."""
        self._begun: float | None = None
        """When the trouble began (event loop time)."""

    def start(self, connection: AsyncConnection[Any] | None = None) -> None:
        """Carry out orders from now on, at first over this connection; None: over one that the first order
        opens."""
        self._closed, self._connection = "", connection
        self._task = asyncio.get_running_loop().create_task(self._run(), name="atasks records")

    def put(self, order: Order) -> None:
        """Have it carried out. Raises NotConnected."""
        if self._closed:
            raise NotConnected(self._closed)
        self._orders.append(order)
        self._news.set()

    async def close(self, reason: str) -> None:
        """Carry out nothing more: who awaits an order gets NotConnected, for this reason."""
        self._closed = reason
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        while self._orders:
            _fail(self._orders.popleft(), NotConnected(reason))
        await self._hang_up()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._orders:
                orders = self._next()
                try:
                    await self._carry_out(orders)
                finally:  # it was cancelled: `close` ends them
                    self._orders.extendleft(order for order in reversed(orders) if not order.done.done())

    def _next(self) -> list[Order]:
        """The first order, and all that share its statement."""
        work = self._orders[0].work
        taken: list[Order] = []
        left: list[Order] = []
        size = 0
        while self._orders and len(taken) < AT_ONCE and size < BYTES_AT_ONCE:
            order = self._orders.popleft()
            if order.done.done():
                continue
            if order.work == work:
                taken.append(order)
                size += order.size
            else:
                left.append(order)
        self._orders.extendleft(reversed(left))
        return taken

    async def _carry_out(self, orders: Sequence[Order]) -> None:
        waits = pauses(*BACKOFF)
        while orders := [order for order in orders if not order.done.done()]:
            try:
                async with asyncio.timeout(STATEMENT_SECONDS):
                    connection = await self._connected()
                    found = await orders[0].work(connection, orders)
            except (psycopg.Error, OSError) as error:  # a TimeoutError is an OSError
                if not _passes(error):
                    if len(orders) == 1:
                        what = f"the database refuses a record: {self._reason(error)}"
                        _fail(orders[0], RecordsUnavailable(what))
                        return
                    for order in orders:  # any one of them may be what is refused
                        await self._carry_out([order])
                    return
                await self._hang_up()
                self._troubled(self._reason(error))
                await asyncio.sleep(next(waits))
            else:
                self._well()
                for order, value in zip(orders, found, strict=True):
                    if not order.done.done():
                        order.done.set_result(value)

    async def _connected(self) -> AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        return self._connection

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                await connection.close()

    def _troubled(self, reason: str) -> None:
        if not self.trouble:
            self._begun = asyncio.get_running_loop().time()
            logger.warning(
                "the database of the records is away (%s): what this process writes there waits until it is back",
                reason,
            )
        self.trouble = reason or "it does not answer"

    def _well(self) -> None:
        if self.trouble:
            seconds = asyncio.get_running_loop().time() - (self._begun or 0.0)
            logger.warning("the database of the records is back, after %.1f s", seconds)
            self.trouble = ""


def _passes(error: psycopg.Error | OSError) -> bool:
    """Return True for what another try may mend: the database is away, or is busy."""
    if not isinstance(error, psycopg.Error):
        return True
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(PASSING)


def _fail(order: Order, error: Exception) -> None:
    if not order.done.done():
        order.done.set_exception(error)
        order.done.exception()  # nobody may be waiting
