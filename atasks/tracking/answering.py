"""A worker's answers to questions about itself and its calls."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from atasks.tracking import queries, snapshots
from atasks.tracking.queries import (
    MAX_AWAITED,
    MAX_CALLS,
    Answer,
    Awaited,
    CallInfo,
    Calls,
    CancelCalls,
    Cancelled,
    Done,
    FindTasks,
    Inspect,
    LookAtQueues,
    LookAtSchedules,
    Ping,
    Pong,
    Stack,
    StackOf,
    State,
    TasksFound,
    Watch,
    WorkerInfo,
)
from atasks.tracking.stacks import chains
from atasks.tracking.watching import watch
from atasks.wire import VERSION, Query, QueryAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atasks.transport.pending import Pending
    from atasks.worker.held_call import HeldCall
    from atasks.worker.worker import Worker

__all__ = ["answer"]

logger = logging.getLogger("atasks.worker")

MAX_BYTES: Final = 2**20


def answer(
    worker: Worker, queues: Sequence[str], query: Query, owner: str | None = None, voice: str | None = None
) -> QueryAnswer | None:
    """Return this worker's answer to a question; None: it has none. `queues` are those that it serves.

    `owner`: only calls of the key of that name may be ended, and tell of tracebacks; None: all. `voice`: under
    which key who asks hears of events. Never raises.
    """
    if query.worker not in ("", worker.id) or (query.queue and query.queue not in queues):
        return None
    question = queries.decode_question(query.content)
    if question is None:
        return None
    try:
        if isinstance(question, Watch):
            return QueryAnswer(
                VERSION, query.token, worker.id, queries.encode(Done(watch(worker, query, question, owner, voice)))
            )
        found = _Answering(worker, queues, owner).to(question)
        if found is None:
            return None
        content = queries.encode(found)
        if isinstance(found, WorkerInfo | Calls):
            content = _bounded(found, content)
    except Exception:
        logger.exception("this worker could not answer a question about itself: report the traceback")
        return None
    return QueryAnswer(VERSION, query.token, worker.id, content)


def _bounded(found: WorkerInfo | Calls, content: bytes) -> bytes:
    """Leave out half of the list, again and again, until the answer is small enough."""
    while len(content) > MAX_BYTES:
        items: list[Any] = found.tasks if isinstance(found, WorkerInfo) else found.calls
        del items[len(items) // 2 :]
        if isinstance(found, WorkerInfo):
            found.cut = True
        content = queries.encode(found)
    return content


class _Answering:
    """Looks at a worker on behalf of who may end the calls of `owner`, or all (None)."""

    def __init__(self, worker: Worker, queues: Sequence[str], owner: str | None) -> None:
        self.worker = worker
        self.queues = queues
        self.owner = owner

    def to(
        self, question: Ping | Inspect | Stack | CancelCalls | LookAtQueues | LookAtSchedules | FindTasks
    ) -> Answer | None:
        match question:
            case Ping():
                worker = self.worker
                return Pong(
                    socket.gethostname(), os.getpid(), list(self.queues), _version(), time.time(), worker.draining
                )
            case Inspect(what="worker"):
                return self._info()
            case Inspect():
                return self._calls(question)
            case Stack():
                run = self.worker.find(question.id)
                if run is None:
                    return Done("it is not here")
                self.worker.look()
                return StackOf(run.call.id, self._call(run, self._awaited()), chains(run))
            case LookAtQueues():  # where workers must check this themselves, their transport has done so
                return Done()
            case LookAtSchedules():
                return None
            case FindTasks():
                default = self.worker.transport.queue
                names = self.worker.served.without_queue(question.names)
                return TasksFound(default, names) if names and default in self.queues else None
            case CancelCalls():
                return Cancelled([call_id for call_id in question.ids if self._cancel(call_id)])

    def _may(self, run: HeldCall) -> bool:
        return self.owner is None or run.call.by == self.owner

    def _info(self) -> WorkerInfo:
        worker = self.worker
        (counts,) = snapshots.read(worker.counters.table, worker.id)
        tasks = sorted(counts.tasks, key=lambda item: -item.received)
        return WorkerInfo(
            id=worker.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            namespace=worker.namespace,
            queues=list(self.queues),
            version=_version(),
            python=platform.python_version(),
            codec=worker.router.codec.name,
            transport=type(worker.transport).__name__,
            now=time.time(),
            uptime=time.time() - counts.since,
            draining=worker.draining,
            concurrency=worker.concurrency,
            running=counts.running,
            parked=counts.parked,
            waiting=counts.waiting,
            loop_lag=counts.loop_lag,
            bad=counts.bad,
            tasks=tasks[:MAX_CALLS],
            refused=worker.transport.refused,
            cut=len(tasks) > MAX_CALLS,
        )

    def _calls(self, question: Inspect) -> Calls:
        now, ids = time.time(), set(question.ids)
        self.worker.look()
        found = [
            run
            for run in self.worker.runs
            if (not ids or run.call.id in ids)
            and (not question.task or fnmatchcase(run.call.task, question.task))
            and (not question.state or _state(run) == question.state)
            and (not question.older or now - run.call.sent_ms / 1000 >= question.older)
        ]
        found.sort(key=lambda run: run.call.sent_ms)
        awaited = self._awaited()
        return Calls([self._call(run, awaited) for run in found[: question.limit]], len(found))

    def _awaited(self) -> dict[str, list[Pending]]:
        """Call -> those that it awaits."""
        found: dict[str, list[Pending]] = {}
        for pending in self.worker.transport.pendings():
            if pending.call.parent is not None:
                found.setdefault(pending.call.parent, []).append(pending)
        return found

    def _call(self, run: HeldCall, awaited: dict[str, list[Pending]]) -> CallInfo:
        call, now = run.call, time.time()
        pendings = awaited.get(call.id, [])
        return CallInfo(
            id=call.id,
            task=call.task,
            worker=self.worker.id,
            state=_state(run),
            queue=run.queue,
            age=max(now - call.sent_ms / 1000, 0.0),
            ran=run.ran,
            attempt=call.attempt,
            max_attempts=call.max_attempts,
            left=None if run.deadline is None else run.deadline - run.loop.time(),
            parent=call.parent,
            root=call.root or call.id,
            progress=str(getattr(run, "progress", None) or ""),
            awaits=[
                Awaited(
                    item.call.id,
                    item.call.task,
                    item.options.queue or self.worker.transport.queue,
                    max(now - item.call.sent_ms / 1000, 0.0),
                )
                for item in pendings[:MAX_AWAITED]
            ],
            cut=len(pendings) > MAX_AWAITED,
            wants=[] if run.tokens is None else run.tokens.wanted[:MAX_AWAITED],
            holds=[] if run.tokens is None else run.tokens.held[:MAX_AWAITED],
        )

    def _cancel(self, call_id: str) -> bool:
        """Cancel a call. Returns True if it has ended here, or will at once; else it will end when it comes
        here."""
        worker = self.worker
        run = worker.find(call_id)
        if run is not None:
            if self._may(run):
                worker.end(run)
                return True
            return False
        for pending in worker.transport.pendings():
            if pending.call.id == call_id and self._may_end(pending):
                worker.transport.end_await(pending)
                return True
        worker.condemn(call_id, self.owner)
        return False

    def _may_end(self, pending: Pending) -> bool:
        """Return True if the answer may name the call that awaits it."""
        run = self.worker.find(pending.call.parent or "")
        return self.owner is None or (run is not None and self._may(run))


def _state(run: HeldCall) -> State:
    if not run.started:
        return "waiting"
    return "parked" if run.awaits else "running"


def _version() -> str:
    return str(getattr(sys.modules.get("atasks"), "__version__", ""))
