"""Workers that are replaced one after the other, under load."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import pytest

from tests.faults.history import Delivery, History, settled
from tests.faults.tasks import fan, fib, work
from tests.faults.workers import Fleet

WORKERS = 3
GRACE = 8.0
CLIENTS = 12
LENGTHS = (0.0, 0.01, 0.1, 0.5, 2.0)
"""Seconds that calls run: mixed, and shorter than the grace."""
ALLOWANCE = 1.0
"""Seconds that a call may be late, besides its own run time and what the load of the machine explains."""


@dataclass
class Load:
    """Clients that call one after the other, and how late each call was."""

    history: History
    queue: str
    dice: random.Random
    over: asyncio.Event = field(default_factory=asyncio.Event)
    lateness: list[tuple[float, float]] = field(default_factory=list)
    """(seconds of the run, seconds from the call to its result beyond these)."""
    clients: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, clients: int) -> None:
        self.clients = [asyncio.create_task(self._client()) for _ in range(clients)]

    async def stop(self) -> None:
        self.over.set()
        await settled(asyncio.gather(*self.clients), f"the load on {self.queue}", 60)

    async def _client(self) -> None:
        while not self.over.is_set():
            seconds = self.dice.choice(LENGTHS)
            delivery: Delivery = "at_most_once" if self.dice.random() < 0.25 else "at_least_once"
            began = time.monotonic()
            await self.history.call(work, seconds, queue=self.queue, delivery=delivery)
            self.lateness.append((seconds, time.monotonic() - began - seconds))


async def _replace(fleet: Fleet, options: dict[str, object]) -> None:
    """Stop every worker of the first ones, each before its successor starts."""
    for worker in fleet.workers[:WORKERS]:
        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(fleet.start, **options)


@pytest.mark.usefixtures("connected")
async def test_a_rolling_restart_loses_no_call_and_delays_none(fleet: Fleet, history: History) -> None:
    """Beside the workers that are replaced, one is left alone: how late its calls are is the machine's doing."""
    options: dict[str, object] = {"queues": ["moving"], "concurrency": CLIENTS, "grace": GRACE}
    fleet.start(WORKERS, **options)
    fleet.start_one(queues=["standing"], concurrency=CLIENTS)
    dice = random.Random(17)
    moving, standing = Load(history, "moving", dice), Load(history, "standing", dice)
    for load in (moving, standing):
        load.start(CLIENTS)
    await _replace(fleet, options)
    for load in (moving, standing):
        await load.stop()
    history.completed()
    history.check()
    assert {run.attempt for run in history.runs()} == {1}
    assert len(history.runs()) == len(history.made), "a drain within the grace interrupts nothing"
    load_explains = max(late for _, late in standing.lateness)
    worst = max(late - seconds for seconds, late in moving.lateness)
    assert worst <= ALLOWANCE + load_explains, (
        f"late by {worst:.2f} s; by the machine's doing {load_explains:.2f} s"
    )
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_trees_of_calls_survive_a_rolling_restart(fleet: Fleet) -> None:
    options: dict[str, object] = {"concurrency": 4, "grace": GRACE}
    fleet.start(WORKERS, **options)
    over = asyncio.Event()

    async def client() -> int:
        trees = 0
        while not over.is_set():
            assert await fib(8) == 21
            assert await fan(60) == sum(range(60))
            trees += 2
        return trees

    clients = [asyncio.create_task(client()) for _ in range(3)]
    await _replace(fleet, options)
    over.set()
    assert min(await settled(asyncio.gather(*clients), "trees of calls", 60)) >= 2
    await fleet.quiet()
