"""Last attempts take turns with other calls, at the broker and around a hub; and the envelope is a wish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atasks import Transport
from atasks.caller.encoding import new_call
from atasks.testing import Site, soon
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local import LocalTransport
from tests.amqp.conftest import Meeting

NAP = 0.5
NAPS = 6


@pytest.fixture
async def site(meeting: Meeting) -> AsyncIterator[Site]:
    """A caller and workers, at the broker or around a hub."""
    url, options = meeting
    kind = AMQPTransport if url.startswith("amqp") else LocalTransport

    def new(namespace: str) -> Transport:
        return kind.from_url(url, namespace, options)

    site = Site(new)
    yield site
    site.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_other_calls_wait_for_one_last_attempt_at_most(site: Site, concurrency: int, workers: int) -> None:
    """Many of them are there at once, and each runs for long; a caller makes other calls, one after the other."""
    running: list[str] = []
    beside: list[list[str]] = []

    @site.atask(name="nap")
    async def nap(name: str, seconds: float) -> str:
        running.append(name)
        if seconds:
            beside.append([*running])
        try:
            await asyncio.sleep(seconds)
        finally:
            running.remove(name)
        return name

    async def last_attempt(number: int) -> Any:
        call = new_call(
            "nap",
            await _arguments(site, f"last-{number}", NAP),
            nap.options().task_options,
            site.caller,
            site.router.codec,
            None,
        )
        call.attempt = call.max_attempts
        return await site.caller.request(call, nap.task_options)

    async with site.open(concurrency=concurrency):
        for _ in range(workers - 1):
            await site.serve(concurrency=concurrency)
        assert await nap("first", 0) == "first"
        began = time.monotonic()
        naps = [asyncio.create_task(last_attempt(number)) for number in range(NAPS)]
        waits: list[float] = []
        while not all(task.done() for task in naps):
            before = time.monotonic()
            await soon(nap(f"good-{len(waits)}", 0))
            waits.append(time.monotonic() - before)
            await asyncio.sleep(0.01)
        await soon(asyncio.gather(*naps))
        took = time.monotonic() - began
    assert max(waits) < 2 * NAP, f"one of {len(waits)} other calls waited for {max(waits):.2f} s"
    assert len(waits) > NAPS
    assert took < 3 * NAPS * NAP, "last attempts have half of the time"
    if workers == 1:
        assert all(len(names) == 1 for names in beside), f"one did not run alone: {beside}"


async def test_last_attempts_among_themselves_wait_for_nobody(site: Site) -> None:
    count = 40

    @site.atask(name="quick")
    async def quick() -> None:
        await asyncio.sleep(0.01)

    async def last_attempt() -> Any:
        call = new_call("quick", await _arguments(site), quick.task_options, site.caller, site.router.codec, None)
        call.attempt = call.max_attempts
        return await site.caller.request(call, quick.task_options)

    async with site.open():
        began = time.monotonic()
        await soon(asyncio.gather(*(last_attempt() for _ in range(count))))
        assert time.monotonic() - began < count * 0.15


async def _arguments(site: Site, *args: Any) -> bytes:
    return bytes(await site.router.codec.encode((args, {})))
