"""Questions to the workers of a namespace, from who is connected to it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from atasks.checks import is_queue, validate_queue
from atasks.errors import NotConnected
from atasks.tracking import queries
from atasks.tracking.queries import (
    KINDS,
    Answer,
    Awaited,
    CallInfo,
    Calls,
    CancelCalls,
    Cancelled,
    Done,
    Event,
    Events,
    Inspect,
    LookAtQueues,
    Ping,
    Pong,
    Question,
    Stack,
    StackOf,
    Watch,
    WorkerInfo,
)
from atasks.wire import VERSION, Query, QueryAnswer

if TYPE_CHECKING:
    from atasks.tracking.steering import DeadLetters, Purged
    from atasks.transport.call_transport import CallTransport

__all__ = ["Fleet", "FleetCalls", "Heard"]

A = TypeVar("A", bound=Answer)

LEASE_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 1.0
"""Seconds to wait for answers: nobody knows how many workers there are, and one may be busy."""
IDS_AT_ONCE: Final = 1000
MAX_QUEUES: Final = 1000
"""Queues whose state is looked at for one question."""


class FleetCalls(Struct):
    """The calls that were found."""

    calls: list[CallInfo]
    """Those that workers hold, the oldest first."""
    queued: list[CallInfo]
    """Those that a call awaits, and that no worker holds which has answered: they wait in their queue. Their
    state is `waiting`, and their `worker` is empty."""
    left_out: int
    """Calls that workers hold, and did not tell of."""
    workers: int
    """Workers that have answered."""


class Heard(Struct, gc=False):
    """An event, as it was told by a worker."""

    worker: str
    event: Event
    missed: int = 0
    """Events, of all workers, that got lost since the one before."""


class Fleet:
    """The workers of the namespace that a transport serves: questions to them, and orders.

    Every question waits for `wait` seconds for answers, or until `size` workers have answered. A worker whose
    event loop is blocked for longer is not in the answers.
    """

    def __init__(self, transport: CallTransport, wait: float = WAIT_SECONDS, size: int | None = None) -> None:
        """`size`: how many workers there are; None: nobody knows."""
        self._transport = transport
        self._wait = wait
        self._size = size

    async def ping(self, *, worker: str = "", queue: str = "", expect: int | None = None) -> dict[str, Pong]:
        """The workers that are there, by id. Returns as soon as `expect` of them have answered."""
        return await self._ask(Ping(), Pong, worker=worker, queue=queue, enough=expect)

    async def workers(self, *, worker: str = "", queue: str = "") -> list[WorkerInfo]:
        """Ask the workers about themselves."""
        found = await self._ask(Inspect("worker"), WorkerInfo, worker=worker, queue=queue)
        return sorted(found.values(), key=lambda info: info.id)

    async def calls(
        self,
        *,
        worker: str = "",
        queue: str = "",
        limit: int = queries.MAX_CALLS,
        task: str = "",
        state: str = "",
        older: float = 0.0,
        ids: Sequence[str] = (),
    ) -> FleetCalls:
        """The calls that workers hold, up to `limit` of each, and those that calls there await and no worker has.
        Only calls of atasks whose name matches the pattern `task`, in that state, and made `older` seconds ago at
        least."""

        async def ask(question: Inspect) -> tuple[list[CallInfo], int, int]:
            found = await self._ask(question, Calls, worker=worker, queue=queue)
            calls = [call for answer in found.values() for call in answer.calls]
            return calls, sum(answer.total for answer in found.values()), len(found)

        calls, total, workers = await ask(Inspect("calls", limit, task, state, older, list(ids)))
        if not (task or state or older):
            queued = _queued(calls)
        elif state not in ("", "waiting"):
            queued = []
        else:  # calls that are not asked for may await some that are; of these, a worker holds some
            parents, _, _ = await ask(Inspect("calls", limit, state="parked"))
            queued = [
                call
                for call in _queued([*parents, *calls])
                if (not task or fnmatchcase(call.task, task)) and call.age >= older
            ][:IDS_AT_ONCE]
            if queued:
                found, _, _ = await ask(Inspect("calls", ids=[call.id for call in queued]))
                held = {call.id for call in found}
                queued = [call for call in queued if call.id not in held]
        return FleetCalls(sorted(calls, key=lambda call: -call.age), queued, total - len(calls), workers)

    async def stack(self, call_id: str, wait: float | None = None) -> StackOf | None:
        """Return the place in the code that a call is at; None: no worker that has answered holds it. `wait`:
        seconds for this question, instead of those for every question."""
        found = await self._ask(Stack(call_id), StackOf, enough=1, wait=wait)
        return next(iter(found.values()), None)

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        """End these calls: their awaits end in `CallCancelled`. Returns those that a worker held, or awaited. The
        others end when a worker gets them within 10 minutes."""
        ended: list[str] = []
        for start in range(0, len(ids), IDS_AT_ONCE):
            found = await self._ask(CancelCalls(list(ids[start : start + IDS_AT_ONCE])), Cancelled)
            ended += [call_id for answer in found.values() for call_id in answer.ids]
        return list(dict.fromkeys(ended))

    async def queue_states(self, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Work queue -> how many calls are ready in it, and its consumers; without those that are not there. Empty
        over a transport that cannot tell. Of `MAX_QUEUES` queues at most."""
        return await self._transport.queue_states(_names(queues))

    async def pause(self, queue: str) -> list[str]:
        """Have workers take no new calls of the queue, those that come later too, until it is resumed. Returns the
        ids of those that have confirmed it. Calls that they have begun end there; those that wait go on waiting.

        Raises NotSupported, NotConnected; TypeError, ValueError for what is no name of a queue.
        """
        await self._transport.pause_queue(validate_queue(queue))
        return await self._look_at(queue)

    async def resume(self, queue: str) -> list[str]:
        """Have workers take calls of a paused queue again. Returns the ids of those that have confirmed it. Raises
        as `pause` does."""
        await self._transport.resume_queue(validate_queue(queue))
        return await self._look_at(queue)

    async def _look_at(self, queue: str) -> list[str]:
        # All workers are asked: nobody else knows how many serve the queue, and when all of them have answered.
        infos, looked = await asyncio.gather(self.workers(), self._ask(LookAtQueues(), Done))
        return sorted(info.id for info in infos if queue in info.queues and info.id in looked)

    async def paused(self, queues: Sequence[str]) -> list[str]:
        """Return those of the queues that are paused, of `MAX_QUEUES` at most."""
        return await self._transport.paused_queues(_names(queues))

    async def purge(self, queue: str) -> Purged:
        """End the calls that wait in the queue now: their awaits end in `CallCancelled`, and so do the records of
        those that were submitted. Those that a worker has go on. Raises as `pause` does."""
        return await self._transport.purge_queue(validate_queue(queue))

    def dead_letters(self) -> AbstractAsyncContextManager[DeadLetters]:
        """A block in which the messages that could be neither read nor answered can be looked at, put back into
        their queues, or dropped."""
        return self._transport.dead_letters()

    async def dead_count(self) -> int:
        """Return the number of these messages."""
        return await self._transport.dead_count()

    async def watch(
        self,
        kinds: Sequence[str] = KINDS,
        *,
        sample: float = 1.0,
        lease: float = LEASE_SECONDS,
        limit: int = 10_000,
        ids: Sequence[str] = (),
    ) -> AsyncGenerator[Heard, None]:
        """Yield events of the workers, from now on, until this generator is closed: of these kinds, and of such a
        part of the trees of calls; `ids`: of these calls and their tries only, and first how far they are.
        Workers that come later are asked too.

        A reader that is slow misses events, and slows nobody: it is told how many. At most `limit` of them wait
        here for it. Raises NotConnected, a TransportError.
        """
        turns = self.watch_together(kinds, sample=sample, lease=lease, limit=limit, ids=ids)
        async with aclosing(turns):
            async for together in turns:
                for found in together:
                    yield found

    async def watch_together(
        self,
        kinds: Sequence[str] = KINDS,
        *,
        sample: float = 1.0,
        lease: float = LEASE_SECONDS,
        limit: int = 10_000,
        ids: Sequence[str] = (),
    ) -> AsyncGenerator[list[Heard], None]:
        """Yield what `watch` does: all events in one list that have arrived since the list before."""
        question = Watch(list(kinds), sample, lease, list(ids))
        query = Query(VERSION, uuid.uuid4().hex, queries.encode(question))
        arrived = asyncio.Event()
        waiting: list[Heard] = []
        next_number: dict[str, int] = {}
        dropped: dict[str, int] = {}
        missed = 0

        def heard(answer: QueryAnswer) -> None:
            nonlocal missed
            content = queries.decode_answer(answer.content)
            if not isinstance(content, Events):
                return
            worker = answer.worker
            missed += max(content.first - next_number.get(worker, content.first), 0)
            missed += max(content.dropped - dropped.get(worker, 0), 0)
            next_number[worker] = content.first + len(content.events)
            dropped[worker] = content.dropped
            events = content.events[: max(limit - len(waiting), 0)]
            missed += len(content.events) - len(events)
            waiting.extend([Heard(worker, event) for event in events])
            arrived.set()

        async with self._transport.listen(query.token, heard):
            loop = asyncio.get_running_loop()
            due = 0.0
            try:
                while True:
                    if loop.time() >= due:
                        due = loop.time() + lease / 3
                        self._transport.ask(query, None)
                    arrived.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(due - loop.time()):
                            await arrived.wait()
                    if waiting:
                        together, waiting = waiting, []
                        together[0].missed, missed = missed, 0
                        yield together
            finally:
                over = Watch([], 0.0, 0.0)
                with suppress(NotConnected):
                    self._transport.ask(Query(VERSION, query.token, queries.encode(over)), None)

    async def _ask(
        self,
        question: Question,
        kind: type[A],
        *,
        worker: str = "",
        queue: str = "",
        enough: int | None = None,
        wait: float | None = None,
    ) -> dict[str, A]:
        """Worker -> its answer, `enough` of them if that is given. Raises NotConnected, NotSupported."""
        try:
            query = Query(VERSION, uuid.uuid4().hex, queries.encode(question), worker, queue)
        except UnicodeEncodeError:
            return {}  # surrogates, as of bytes of a command line: nothing that workers have is named so
        over = asyncio.Event()
        answered: set[str] = set()
        found: dict[str, A] = {}
        size = 1 if worker else None if queue else self._size

        def heard(answer: QueryAnswer) -> None:
            content = queries.decode_answer(answer.content)
            answered.add(answer.worker)
            if isinstance(content, kind):
                found[answer.worker] = content
            if len(answered) == size or len(found) == enough:
                over.set()

        self._transport.ask(query, heard)
        try:
            async with asyncio.timeout(self._wait if wait is None else wait):
                await over.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.unask(query)
        return found


def _names(queues: Sequence[str]) -> list[str]:
    """Those of the names that a queue can have, `MAX_QUEUES` of them: workers have said them, or who speaks for
    some, and each costs a question."""
    return [queue for queue in queues if is_queue(queue)][:MAX_QUEUES]


def _queued(calls: Sequence[CallInfo]) -> list[CallInfo]:
    held = {call.id for call in calls}
    found: dict[str, CallInfo] = {}
    for call in calls:
        for item in call.awaits:
            if item.id not in held:
                found[item.id] = _waiting(item, call)
    return list(found.values())


def _waiting(item: Awaited, parent: CallInfo) -> CallInfo:
    root = parent.root or parent.id
    return CallInfo(item.id, item.task, "", "waiting", item.queue, item.age, parent=parent.id, root=root)
