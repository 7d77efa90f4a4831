"""Calls that run for longer than the broker waits for an acknowledgement."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator

import pytest

from atasks.testing import Site, soon, until
from tests.amqp.conftest import NewTransport
from tests.brokers.base import Broker


@pytest.fixture
def site(new_transport: NewTransport) -> Iterator[Site]:
    """Transports that take the broker's patience for a second, so that leases are due after half of it."""
    site = Site(functools.partial(new_transport, consumer_timeout=1.0))
    yield site
    site.close()


async def _until_in(broker: Broker, name: str, messages: int) -> None:
    """Return when the queues whose names begin so hold that many messages."""
    found = -1
    while found != messages:
        queues = await asyncio.to_thread(broker.queues)
        found = sum(queue.messages for queue in queues if queue.name.startswith(name))


@pytest.mark.parametrize("batch", [False, 5])
async def test_long_calls_move_to_leases_and_run_once(
    site: Site, controllable_broker: Broker, prefix: str, batch: int | bool
) -> None:
    runs: list[int] = []
    ended = asyncio.Event()

    @site.atask(batch=batch)
    async def work(number: int) -> int:
        runs.append(number)
        await ended.wait()
        return number

    async with site.open():
        calls = [asyncio.create_task(work(number)) for number in range(5)]
        await soon(_until_in(controllable_broker, f"{prefix}.l.", 5))
        await soon(_until_in(controllable_broker, f"{prefix}.q.", 0))  # what they came by is acknowledged
        ended.set()
        assert await soon(asyncio.gather(*calls)) == list(range(5))
        assert sorted(runs) == list(range(5))
        await soon(_until_in(controllable_broker, f"{prefix}.l.", 0))


async def test_calls_move_to_leases_if_another_one_of_their_message_goes_back(
    new_transport: NewTransport, controllable_broker: Broker, prefix: str
) -> None:
    """If their worker died with the message, the one that went back would be delivered twice."""
    site = Site(new_transport)
    gate = asyncio.Event()

    @site.atask(batch=2)
    async def work(number: int) -> int:
        await gate.wait()
        return number

    async with site.open(concurrency=1):
        calls = [asyncio.create_task(work(number)) for number in range(2)]
        await until(lambda: site.worker.unstarted == 1, "the message has come")
        draining = asyncio.create_task(site.worker.drain(60))
        try:
            await soon(_until_in(controllable_broker, f"{prefix}.l.", 1))
            await soon(_until_in(controllable_broker, f"{prefix}.q.", 1))  # the one that went back
        finally:
            gate.set()
        assert await soon(calls[0]) == 0
        await soon(draining)
        calls[1].cancel()
        await asyncio.wait(calls)
    site.close()
