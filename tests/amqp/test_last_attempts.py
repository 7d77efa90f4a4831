"""Last attempts take turns with other calls, at the broker and around a hub; and the envelope is a wish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atasks import Transport
from atasks.caller.encoding import new_call
from atasks.testing import Site, soon
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local import LocalTransport
from tests.amqp.conftest import Meeting
from tests.pace import keeping_pace

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
        async with keeping_pace() as pace:
            naps = [asyncio.create_task(last_attempt(number)) for number in range(NAPS)]
            waits: list[int] = []
            while not all(task.done() for task in naps):
                before = len(beside)
                await soon(nap(f"good-{len(waits)}", 0))
                waits.append(len(beside) - before)
                await asyncio.sleep(0.01)
            await soon(asyncio.gather(*naps))
    # One may begin when the call has been sent, and the next one before its reply is here.
    assert max(waits) <= 2 * workers, f"{max(waits)} last attempts began while one of {len(waits)} others waited"
    assert len(waits) >= NAPS // workers, "others have their turns between them"
    assert pace.seconds < 3 * NAPS * NAP, "last attempts have half of the time"
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

    async with site.open(), keeping_pace() as pace:
        await soon(asyncio.gather(*(last_attempt() for _ in range(count))))
        assert pace.seconds < count * 0.15


async def _arguments(site: Site, *args: Any) -> bytes:
    return bytes(await site.router.codec.encode((args, {})))
