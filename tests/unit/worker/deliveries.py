"""A worker, calls that are delivered to it, and what it does with them."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import atasks
from atasks.router import Router
from atasks.tasks import atask
from atasks.transport.loopback import LoopbackTransport
from atasks.wire import VERSION, Call, Reply
from atasks.worker.worker import Worker


class Redelivering(LoopbackTransport):
    """A transport that may deliver a call twice."""

    redelivers = True


@dataclass
class Recorded:
    """A delivery that notes what the worker does with it."""

    endings: list[tuple[str, Any]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    elsewhere: Call | None = None
    queue: str = "default"

    def _end(self, how: str, what: Any = None) -> None:
        self.endings.append((how, what))
        self.ended.set()

    def reply(self, reply: Reply) -> None:
        self._end("reply", reply)

    def drop(self) -> None:
        self._end("drop")

    def give_back(self, call: Call, executor: str | None = None) -> None:
        self._end("give_back", call)

    async def pass_on(self, call: Call) -> Call | None:
        return self.elsewhere

    async def how(self) -> str:
        """Tell of the one ending after a few turns of the event loop, so that a second one shows."""
        await asyncio.wait_for(self.ended.wait(), 10)
        for _ in range(5):
            await asyncio.sleep(0)
        (ending,) = self.endings
        return ending[0]

    async def the_reply(self) -> Reply:
        assert await self.how() == "reply"
        reply: Reply = self.endings[0][1]
        return reply


@dataclass
class Site:
    """One worker, and calls for it."""

    worker: Worker
    router: Router
    count: int = 0

    def call(self, task: str, *args: Any, **changes: Any) -> Call:
        self.count += 1
        fields: dict[str, Any] = {
            "id": f"call-{self.count}",
            "codec": self.router.codec.name,
            "payload": pickle.dumps((args, {})),
            "sent_ms": int(time.time() * 1000),
        }
        return Call(VERSION, task=task, **{**fields, **changes})

    def deliver(self, task: str, *args: Any, alone: bool = False, **changes: Any) -> tuple[Call, Recorded]:
        call, delivery = self.call(task, *args, **changes), Recorded()
        self.worker.deliver(call, delivery, alone)
        return call, delivery

    def all_free(self) -> bool:
        worker = self.worker
        return (worker.slots.free, worker.held, worker.parked, worker.unstarted) == (worker.concurrency, 0, 0, 0)


@asynccontextmanager
async def serving(
    namespace: str, *, concurrency: int = 1, redelivers: bool = False, **options: Any
) -> AsyncIterator[Site]:
    transport = (Redelivering if redelivers else LoopbackTransport)(namespace)
    router = atasks.get_router(namespace)
    await transport.connect()
    worker = Worker(router, transport, concurrency=concurrency, **options)
    await worker.start()
    try:
        yield Site(worker, router)
    finally:
        await worker.drain(0)
        await transport.disconnect()


class Gate:
    """An atask that stays inside until told to leave."""

    def __init__(self, namespace: str) -> None:
        self.inside: list[Any] = []
        self.cancelled: list[Any] = []
        self.arrived = asyncio.Condition()
        self.open = asyncio.Event()

        @atask(name="pass", namespace=namespace)
        async def pass_gate(who: Any = None) -> Any:
            self.inside.append(who)
            async with self.arrived:
                self.arrived.notify_all()
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                self.cancelled.append(who)
                raise
            return who

        self.task = pass_gate

    async def until_inside(self, count: int) -> None:
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.inside) >= count)
