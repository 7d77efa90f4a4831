"""Queues that are paused while workers and the broker come and go, and purges of calls in every place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks.testing import until
from atasks.tracking.fleet import Fleet as Tracked
from atasks.transport.call_transport import CallTransport
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.tasks import echo, gated
from tests.faults.workers import Fleet

CONSUMER_TIMEOUT = 4.0
"""Half of it after a call has come, it is held by a lease."""


def steering(transport: Any) -> Tracked:
    assert isinstance(transport, CallTransport)
    return Tracked(transport, 0.5)


async def pausing(tracked: Tracked) -> None:
    async with asyncio.timeout(30):
        while not await tracked.pause("default"):
            pass


async def test_a_pause_outlives_workers_and_the_broker(
    fleet: Fleet, history: History, node: Broker, prefix: str
) -> None:
    worker = fleet.start_one(concurrency=5)
    async with atasks.connect(node.url, prefix=prefix) as transport:
        tracked = steering(transport)
        await pausing(tracked)
        calls = history.start(20, echo)
        assert await asyncio.to_thread(worker.stop) == 0
        fleet.start_one(concurrency=5)
        assert len(await tracked.ping(queue="default", expect=1)) == 1
        assert history.runs() == []
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
        async with asyncio.timeout(60):
            while not (transport.is_connected and await tracked.ping(queue="default", expect=1)):
                await asyncio.sleep(0.1)
        assert await tracked.paused(["default"]) == ["default"]
        assert await transport.queue_states(["default"]) == {"default": (20, 0)}
        assert history.runs() == []
        assert len(await tracked.resume("default")) == 1
        await settled(asyncio.gather(*calls), "calls that waited in a paused queue")
        history.completed()
        history.check()
        await fleet.quiet()


async def test_calls_of_a_worker_that_dies_wait_in_a_paused_queue(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    def waiting() -> int:
        return sum(item.messages for item in node.queues() if ".q." in item.name)

    worker = fleet.start_one(concurrency=5, consumer_timeout=CONSUMER_TIMEOUT)
    async with atasks.connect(node.url, prefix=prefix) as transport:
        tracked = steering(transport)
        calls = history.start(3, gated, str(gate))
        await until(lambda: history.started() == 3, "the calls run")
        await pausing(tracked)
        await until(lambda: any(item.messages for item in node.queues() if ".l." in item.name), "a lease")
        worker.kill()
        fleet.start_one(concurrency=5, consumer_timeout=CONSUMER_TIMEOUT)
        # More, if it died between a lease and the acknowledgement of what that is for.
        await until(lambda: waiting() >= 3, "they wait")
        assert history.started() == 3
        gate.touch()
        await tracked.resume("default")
        await settled(asyncio.gather(*calls), "calls that came back to a paused queue")
        history.completed()
        await fleet.quiet()


async def test_purged_calls_end_wherever_they_wait(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path
) -> None:
    fleet.start_one(concurrency=1)
    never = str(tmp_path / "never")
    async with atasks.connect(node.url, prefix=prefix) as transport:
        tracked = steering(transport)
        await pausing(tracked)
        calls = [asyncio.create_task(gated.options(batch=False)("a", "b", never)) for _ in range(300)]
        once = gated.options(delivery="at_most_once")
        calls += [asyncio.create_task(once("a", "b", never)) for _ in range(5)]
        await until_ready(transport, 305)
        name = f"{prefix}.q.default.default"
        with node.channel() as channel:  # as calls whose last attempt it would be, and as who knows what
            *_, method, properties, body = (None, *channel.basic_get(name, auto_ack=True))
            assert method is not None
            channel.basic_publish("", f"{name}.solo", body, properties)
            channel.basic_publish("", name, b"\x1b[31mwho knows", properties)
        found = await tracked.purge("default")
        assert (found.calls, found.unreadable, found.left) == (305, 1, 0)
        for call in calls:
            with pytest.raises(atasks.CallCancelled, match="was purged from queue 'default'"):
                await asyncio.wait_for(call, 30)
        assert await tracked.dead_count() == 1
        with node.channel() as channel:
            channel.queue_purge(f"{prefix}.dead")
        assert await tracked.resume("default")
        assert history.runs() == []
        await fleet.quiet()


async def until_ready(transport: atasks.Transport, count: int) -> None:
    async with asyncio.timeout(30):
        while (await transport.queue_states(["default"]))["default"][0] != count:
            await asyncio.sleep(0.02)
