"""The loopback transport: calls run in this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from atasks import wire
from atasks.errors import InvalidURL, NotConnected, NoWorker
from atasks.options import Executor, TaskOptions
from atasks.transport.call_transport import CallTransport
from atasks.transport.contract import Transport
from atasks.transport.limits.memory import MemoryLimits
from atasks.transport.memory_journals import MemoryJournals
from atasks.transport.pending import Pending
from atasks.transport.records.contract import DEFAULT_EXPIRES
from atasks.transport.records.memory import MemoryRecords
from atasks.transport.records.store import DEFAULT_KEEP_BYTES
from atasks.transport.schedules import MemorySchedules
from atasks.transport.subscription import Subscription
from atasks.transport.unserved import WARN_SECONDS, Unserved
from atasks.transport.whereabouts import Whereabouts, found_at
from atasks.urls import shown, take_apart
from atasks.wire import Call, Credit, End, Item, Query, QueryAnswer, Reply, Report

if TYPE_CHECKING:
    from atasks.transport.delivery import Delivery
    from atasks.transport.server import Server

__all__ = ["LoopbackDelivery", "LoopbackTransport"]

logger = logging.getLogger("atasks.transport")


class LoopbackTransport(CallTransport):
    """Runs every call in this process, for unit tests and a first run.

    Arguments and results go through the codec, calls through a worker with slots, deadlines and cancellation, so
    what works here works over a broker. Calls wait until a worker serves, as they do on a queue. `keep_runs` is
    for how many seconds the results of a pipeline's run are kept when nobody uses them, while this is connected,
    and `keep_bytes` how many bytes there may be of them.
    """

    supports = CallTransport.supports | {"streams", "events", "reports"}
    _is_here = True
    clock_skew: float = 0.0
    """Seconds by which the clock may differ: it is the same one."""

    def __init__(
        self,
        namespace: str = "default",
        *,
        keep_runs: float = DEFAULT_EXPIRES,
        keep_bytes: int = DEFAULT_KEEP_BYTES,
    ) -> None:
        records = MemoryRecords(self, keep_runs, keep_bytes)
        super().__init__(namespace)
        self._memory = records
        self._worker: Server | None = None
        self._workers: dict[str, Server] = {}
        self._limits = MemoryLimits()
        self.limits = self._limits
        """Those that have served, by id: one that drains still has streams."""
        self._waiting: dict[str, Pending] = {}
        self._groups: dict[str, Subscription] = {}
        """By queue: those that a worker has served here."""
        self._delayed: dict[str, asyncio.TimerHandle] = {}
        """Submitted calls that may not begin yet."""
        self._unserved = Unserved(logger)
        self._look: asyncio.TimerHandle | None = None
        # a subclass with a send_request of its own (a test's spy, say) gets every call through it
        self._minimal = type(self).send_request is not LoopbackTransport.send_request
        self.records = None if self._minimal else records
        self.schedules = None if self._minimal else MemorySchedules()
        self._journals = MemoryJournals(self)
        self.journals = None if self._minimal else self._journals
        if self._minimal:
            self.request = partial(Transport.request, self)  # type: ignore[method-assign]
            self.begin_request = partial(Transport.begin_request, self)  # type: ignore[method-assign]

    @classmethod
    def from_url(cls, url: str | Sequence[str], namespace: str, options: dict[str, Any]) -> LoopbackTransport:
        if cls is not LoopbackTransport:  # under a scheme of its own
            return cls(namespace=namespace, **options)
        for each in [url] if isinstance(url, str) else url:
            parts = take_apart(each)
            place = parts.netloc or parts.path.strip("/") or parts.query
            if place or parts.scheme != "loopback":
                raise InvalidURL(
                    f"{shown(each)!r}: calls run in this process, so its URL has neither host, path nor options: "
                    'give "loopback:", and options as arguments'
                )
        return cls(namespace=namespace, **options)

    async def connect(self) -> None:
        self._opened()
        self._memory.open()
        self._limits.open()

    async def disconnect(self) -> None:
        self._closed("the loopback transport was disconnected")
        self._waiting.clear()
        for timer in self._delayed.values():
            timer.cancel()
        self._delayed.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._workers.clear()
        self._memory.close()
        self._journals.close()
        self._limits.close("the loopback transport was disconnected")

    async def send_request(self, name: str, content: bytes) -> bytes:
        if self.callback is None:
            raise NoWorker(f"nothing serves {name!r}: register a callback, or activate a router, first")
        return await self.callback(name, content)

    async def serve(self, worker: Server, queues: Sequence[str] | None = None) -> None:
        await super().serve(worker, queues)
        self._worker = self._workers[worker.id] = worker
        known = worker.served.queues("default") if queues is None else queues
        self._groups.update(
            {item.queue: item for item in worker.served.subscriptions if item.queue and item.queue in known}
        )
        waiting, self._waiting = self._waiting, {}
        for pending in waiting.values():
            self._post(pending)

    async def serve_also(self, worker: Server, queues: Sequence[str]) -> None:
        self._groups.update(
            {item.queue: item for item in worker.served.subscriptions if item.queue and item.queue in queues}
        )

    def waited(self, call: Call, delivery: Delivery | None) -> float:
        if isinstance(delivery, LoopbackDelivery) and delivery.pending.kept:
            return 0.0  # its deadline counts from here on
        return max(time.time() - call.sent_ms / 1000 - self.clock_skew, 0.0)

    async def stop_serving(self, worker: Server) -> None:
        if self._worker is worker:  # else another one took over
            for pending in self.pendings():
                self._locate(pending)
            await super().stop_serving(worker)
            self._worker = None

    async def publish(self, call: Call) -> None:
        if self._minimal:
            return await super().publish(call)
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        each = (
            []
            if self._worker is None
            else [item for item in self._worker.served.subscriptions if item.queue is None]
        )
        for subscription in (*self._groups.values(), *each):
            if subscription.event == call.task:
                future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
                pending = Pending(subscription.call(call), TaskOptions(queue=subscription.queue), future)
                pending.kept = True
                self._post(pending)
        return None

    def _post(self, pending: Pending) -> None:
        if pending.delay:
            loop = asyncio.get_running_loop()
            self._delayed[pending.call.id] = loop.call_later(
                pending.delay, self._due, pending, context=self._no_context
            )
            pending.handed_over()
        elif self._worker is not None:
            self._worker.deliver(pending.call, LoopbackDelivery(self, pending))
            if pending.kept:
                pending.handed_over()
        elif pending.options.on_no_worker == "error":
            raise NoWorker(f"nothing serves {pending.call.task!r}: activate a router with this transport")
        else:
            self._wait(pending)

    def _due(self, pending: Pending) -> None:
        """A call may begin that was delayed."""
        del self._delayed[pending.call.id]
        pending.delay = 0.0
        if self._worker is None:
            self._wait(pending)
        else:
            self._post(pending)

    def _wait(self, pending: Pending) -> None:
        """Keep the call for the next worker, and warn if none comes."""
        loop = asyncio.get_running_loop()
        pending.since = loop.time()
        self._waiting[pending.call.id] = pending
        if pending.kept:
            pending.handed_over()
        if self._look is None:
            self._look = loop.call_later(WARN_SECONDS, self._warn, context=self._no_context)

    def _warn(self) -> None:
        loop, self._look = asyncio.get_running_loop(), None
        if self._waiting:
            self._look = loop.call_later(WARN_SECONDS, self._warn, context=self._no_context)
            queues: dict[str, list[Pending]] = {}
            for pending in self._waiting.values():
                queues.setdefault(pending.options.queue or "default", []).append(pending)
            for queue, pendings in queues.items():
                self._unserved.see(queue, pendings, loop.time())

    def _withdraw(self, pending: Pending) -> None:
        self.withdraw(pending.call.id)

    def withdraw(self, call_id: str) -> None:
        """Keep the call from beginning, and end its run."""
        if (timer := self._delayed.pop(call_id, None)) is not None:
            timer.cancel()
        elif self._waiting.pop(call_id, None) is None:
            for worker in self._workers.values():
                worker.cancel(call_id)

    def _locate(self, pending: Pending) -> None:
        for worker in self._workers.values():
            run = worker.find(pending.call.id)
            if run is not None:
                pending.where = found_at(worker.id, run, asyncio.get_running_loop().time())
                return
        if self._worker is None and (self._refusal is None or pending.where is None):  # else the block is left
            pending.where = Whereabouts("worker", pending.options.queue or "default")

    def _send_query(self, query: Query) -> None:
        loop = asyncio.get_running_loop()
        for worker in list(self._workers.values()):
            found = worker.answer(worker.served.queues("default"), query)
            if found is not None:
                loop.call_soon(self._hear, found)

    def send_events(self, token: str, worker: str, content: bytes, voice: str | None) -> bool:
        asyncio.get_running_loop().call_soon(self._hear, QueryAnswer(wire.VERSION, token, worker, content))
        return True

    def _grant(self, credit: Credit, worker: str) -> None:
        if worker in self._workers:
            self._workers[worker].streams.credit(credit)


class LoopbackDelivery(Struct, eq=False, gc=False):
    """A call that the worker has in hand. The garbage collector does not look at it, and need not: what it refers
    to does not refer to it, but for the worker while that has the call."""

    transport: LoopbackTransport
    pending: Pending

    @property
    def queue(self) -> str:
        return self.pending.options.queue or "default"

    def reply(self, reply: Reply | End) -> None:
        if not isinstance(reply, Reply):
            self.transport._take_in(reply)
        elif self.pending.kept:
            self.transport._memory.end(reply)
        else:
            if self.pending.address:
                self.transport._journals.note(self.pending.address, reply)
            self.transport._resolve(reply)

    def send(self, envelope: Item | End | Report) -> None:
        if isinstance(envelope, Report):
            self.transport._reported(envelope)
        else:
            self.transport._take_in(envelope)

    def drop(self) -> None:
        pass

    async def pass_on(self, call: Call) -> Call | None:
        return None

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        if self._is_wanted():
            asyncio.get_running_loop().call_soon(self._return)

    def _is_wanted(self) -> bool:
        return self.pending.kept or not self.pending.future.done()

    def _return(self) -> None:
        """Go to the worker that is attached by now, or wait for the next one."""
        if not self._is_wanted():
            return
        worker = self.transport._worker
        if worker is None or not worker.accepting:
            self.transport._wait(self.pending)
        else:
            self.transport._post(self.pending)
