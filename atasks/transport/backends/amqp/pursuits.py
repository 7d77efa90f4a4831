"""Calls whose records somebody waits for: one that is lost is sent again, or ended in its record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from atasks import wire
from atasks.errors import AtasksError, CallConnectionLost, NotConnected
from atasks.options import TaskOptions
from atasks.transport.pending import Pending
from atasks.transport.records.contract import Record, Records
from atasks.wire import Status

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["Pursuits"]

logger = logging.getLogger("atasks.amqp")

MAX_ERRANDS: Final = 1000
"""Calls of others that are seen to at a time: each costs a question to the broker now and then."""


class Pursuits:
    """Has the transport ask for calls that were submitted, as it does for those that are awaited.

    `owner(call_id)`: the name of the key that seals what is sent for that call.
    """

    def __init__(self, session: Session, owner: Callable[[str], str | None]) -> None:
        self._session = session
        self._owner = owner
        self._errands: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By what each does, and the id of the record."""

    @contextmanager
    def pursue(self, keeper: Records, record: Record) -> Iterator[None]:
        """Inside of this the call is asked for, as soon as it is due. If no worker says that it holds it, it is
        sent again or, where it may run at most once, ends in its record, which `keeper` has."""
        session = self._session
        options = TaskOptions(queue=record.head.queue)
        loop = asyncio.get_running_loop()

        def end(message: str) -> None:
            ending = wire.ended(record.call.id, Status.WORKER_LOST, message)
            self._start("end", record.id, keeper.add(record.id, ending))

        pending = _Pursued(record.call, options, loop.create_future(), end=end)
        pending.kept = pending.confirmed = True
        pending.address = record.address or session.topology.kept(record.call.id)
        pending.key = self._owner(record.id)
        left = record.call.sent_ms / 1000 - time.time()
        pending.since = loop.time()
        with ExitStack() as stack:
            if left <= 0:
                stack.enter_context(session.following(pending))
                yield
                return
            pending.since += left
            due = loop.call_later(left, stack.enter_context, session.following(pending), context=Context())
            try:
                yield
            finally:
                due.cancel()

    def see_to(self, keeper: Records, record: Record) -> None:
        """Pursue the call of a record, which `keeper` has, until it has ended. See `Records.see_to`."""
        if record.ending is None and len(self._errands) < MAX_ERRANDS:
            self._start("wait", record.id, keeper.wait(record.id, _has_ended, steps=False))

    def _start(self, what: str, call_id: str, work: Coroutine[Any, Any, object]) -> None:
        """Do it aside, unless it is being done."""
        if (what, call_id) in self._errands:
            work.close()
            return

        async def done() -> None:
            try:
                await work
            except (AtasksError, OSError) as error:
                logger.debug("run %s is not seen to any more: %s", call_id, error)

        task = asyncio.create_task(done(), name="atasks record")
        self._errands[what, call_id] = task
        task.add_done_callback(lambda _: self._errands.pop((what, call_id)))

    def close(self) -> None:
        """See to nothing any more."""
        for task in self._errands.values():
            task.cancel()


def _has_ended(record: Record) -> bool:
    return record.ending is not None


class _Pursued(Pending, kw_only=True):
    """A call whose record is waited for. What becomes of its request ends nothing by itself."""

    end: Callable[[str], None]
    """Ends the call in its record."""

    def handed_over(self) -> None:
        pass

    def lost(self, error: CallConnectionLost) -> None:
        self.end(str(error))

    def fail(self, error: Exception) -> None:
        if not isinstance(error, (CallConnectionLost, NotConnected)):  # else this process is leaving
            logger.warning("a submitted call of %s cannot be sent again: %s", self.call.task, error)
