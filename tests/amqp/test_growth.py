"""Nothing grows in a process that goes on for long: with its calls, its connections, and the cuts of these."""

# Private attributes: `content._in_common`: the properties of messages to an address are kept there, and runs have
# addresses of their own.

from __future__ import annotations

import asyncio
import gc
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest

import atasks
from atasks.testing import Site
from atasks.tracking.counters import callers
from atasks.transport.backends.amqp import AMQPTransport, connection
from atasks.transport.backends.amqp.broker import content, pattern
from tests.amqp.conftest import Connect

TIMES = 30
SETTLE = 0.3
"""Seconds in which what has ended is let go of."""


@pytest.fixture(autouse=True)
def with_small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a consumer know few properties, which runs have of their own: the cache of them does not grow here."""
    monkeypatch.setattr(pattern, "MAX_PROPERTIES", TIMES // 3)


@pytest.fixture(autouse=True)
def without_log() -> Iterator[None]:
    """Log nothing: pytest keeps what is logged, with the exceptions, until a test ends."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


Use = Callable[[], Awaitable[object]]


def define(namespace: str) -> dict[str, Use]:
    """One use of each kind of call."""

    @atasks.atask(namespace=namespace)
    async def add(a: int, b: int) -> int:
        return a + b

    @atasks.atask(namespace=namespace)
    async def outer(a: int) -> int:
        return await add(a, 1)

    @atasks.atask(namespace=namespace)
    async def fails() -> None:
        raise ValueError("as it should")

    @atasks.atask(namespace=namespace, resume=True)
    async def resumes(a: int) -> int:
        return await add(await atasks.once(lambda: a), 1)

    @atasks.atask(namespace=namespace)
    def blocks(a: int) -> int:
        return a

    @atasks.atask(namespace=namespace)
    async def waits() -> None:
        await asyncio.sleep(60)

    async def failure() -> None:
        with pytest.raises(ValueError, match="as it should"):
            await fails()

    async def submitted() -> None:
        assert await (await add.submit(1, 2)) == 3

    async def timeout() -> None:
        with pytest.raises(atasks.CallTimeout):
            await waits.options(timeout=0.01)()

    return {
        "a call": lambda: add(1, 2),
        "a nested call": lambda: outer(1),
        "a failure": failure,
        "a call that resumes": lambda: resumes(1),
        "a call of a thread": lambda: blocks(1),
        "a submitted call": submitted,
        "a call that times out": timeout,
    }


async def grown(use: Use, times: int = TIMES) -> dict[str, int]:
    """The kinds of objects of which each use leaves one behind, twice in a row."""

    async def counted() -> Counter[str]:
        await asyncio.sleep(SETTLE)
        for _ in range(1000):  # so many that the event loop lets go of all timers that were cancelled
            asyncio.get_running_loop().call_later(60, print).cancel()
        await asyncio.sleep(0)
        gc.collect()
        callers.sums()  # adds up the counters of transports that are gone
        content._in_common.cache_clear()
        gc.collect()
        return Counter(f"{type(item).__module__}.{type(item).__qualname__}" for item in gc.get_objects())

    async def more() -> dict[str, int]:
        before = await counted()
        for _ in range(times):
            await use()
        after = await counted()
        return {kind: count - before[kind] for kind, count in after.items() if count - before[kind] >= times}

    for _ in range(5):
        await use()
    first, second = await more(), await more()
    return {kind: second[kind] for kind in first if kind in second}  # caches fill once


async def test_calls_leave_nothing_behind(site: Site) -> None:
    uses = define(site.namespace)
    async with site.open():
        assert {name: await grown(use) for name, use in uses.items()} == {name: {} for name in uses}


async def test_connections_leave_nothing_behind(connect: Connect) -> None:
    namespace = f"growth-{uuid.uuid4().hex}"
    add = define(namespace)["a call"]

    async def once() -> None:
        async with connect(namespace=namespace):
            await add()

    assert await grown(once, times=40) == {}


async def test_cuts_leave_nothing_behind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STABLE_SECONDS", 0.0)  # the pause before a link is restored does not grow
    uses = define(site.namespace)

    async def cut() -> None:
        for transport in (site.caller, site.worker.transport):
            assert isinstance(transport, AMQPTransport)
            assert transport.session.link is not None
            transport.session.link.lose("cut by the test")
        await asyncio.gather(*(uses[name]() for name in ("a call", "a call that resumes", "a submitted call")))

    async with site.open():
        left = await grown(cut, times=20)
        assert [kind for kind in left if not kind.startswith(("builtins.", "weakref."))] == []
