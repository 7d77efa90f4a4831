"""Programs for atasks 0.0.3 with `atask_queue` and `atask_broadcast`, over every transport that has events."""

# Private attributes: `Router._activation`: that nothing is served any more is seen nowhere else.

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest

from atasks import NotConnected, get_router
from atasks.codecs import PickleCodec
from atasks.connection import use
from atasks.router import Router
from atasks.tasks import atask, atask_broadcast, atask_queue
from atasks.testing import Cases, Site, soon, until
from atasks.testing.site import _other_router
from tests.conformance.transports import OverAMQP, OverLocalHub, OverLoopback


class OriginalCases(Cases):
    """One program with two instances, where the transport lets them be two."""

    @pytest.fixture
    async def instances(self, site: Site) -> Any:
        """Activate a router of each instance as the programs do, and leave as they do."""
        PickleCodec(site.namespace)
        async with AsyncExitStack() as stack:
            made: list[tuple[Router, Any]] = []
            for number in range(1 if site.shares_transport else 2):
                transport = site.new_transport()
                await use(stack, transport)
                router = (
                    get_router(site.namespace) if number == 0 else _other_router(site.router, site.router.codec)
                )
                made.append((router, transport))
                stack.push_async_callback(router.deactivate, 0)
            yield made

    async def test_a_queue_has_one_handler_for_each_call(self, site: Site, instances: Any) -> None:
        done: list[int] = []

        @atask(namespace=site.namespace)
        async def double(n: int) -> int:
            return 2 * n

        @atask_queue(name="rate", namespace=site.namespace)
        async def rate(n: int) -> None:
            if n == 3:
                raise ValueError("three")
            done.append(await double(n))

        router, transport = instances[0]
        await router.activate(transport)
        if not site.shares_transport:
            assert await soon(rate(0)) is None, "it waits for who activates the queue"
        for each, its in instances:
            await soon(each.activate_queue("rate", its))
        for n in range(1, 10):
            assert await soon(rate(n)) is None
        await soon(router.send_event("rate", 10))
        expected = [2 * n for n in range(0 if not site.shares_transport else 1, 11) if n != 3]
        await until(lambda: len(done) == len(expected))
        assert sorted(done) == expected

    async def test_every_instance_handles_a_broadcast(self, site: Site, instances: Any) -> None:
        heard: list[str] = []

        @atask_broadcast(namespace=site.namespace)
        async def changed(key: str) -> None:
            heard.append(key)

        name = f"{changed.__module__}.changed"
        await soon(changed("nobody hears"))
        for router, transport in instances:
            await soon(router.activate_broadcast(name, transport))
        await soon(changed("a"))
        await until(lambda: len(heard) == len(instances))
        await soon(instances[0][0].deactivate_broadcast(name))
        await soon(changed("b"))
        await soon(instances[0][0].activate_broadcast(name))
        await soon(instances[0][0].send_broadcast(name, "c"))
        await until(lambda: heard.count("c") == len(instances))
        assert heard.count("a") == len(instances)
        assert "nobody hears" not in heard
        with pytest.raises(TypeError):
            await changed(1, 2)
        with pytest.raises(LookupError, match="import the module"):
            await instances[0][0].activate_broadcast("nothing")

    async def test_a_failure_is_logged_and_ends_nothing(
        self, site: Site, instances: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        done: list[int] = []

        async def handle(n: int) -> None:
            if n == 1:
                raise ValueError("one is wrong")
            done.append(n)

        router, transport = instances[0]
        put = router.register_queue_task("put", coro=handle)
        tell = router.register_broadcast_task("tell", coro=handle, options={"timeout": 30})
        await soon(router.activate_queue("put", transport))
        await soon(router.activate_broadcast("tell", transport))
        with caplog.at_level(logging.WARNING):
            for n in (1, 2):
                await soon(put(n))
                await soon(tell(n))
            await until(lambda: done == [2, 2])
            await until(lambda: caplog.text.count("ValueError: one is wrong") == 2)

    async def test_queues_of_atasks_that_are_defined_later_are_served(self, site: Site, instances: Any) -> None:
        router, transport = instances[0]

        @atask(namespace=site.namespace)
        async def first() -> str:
            return "first"

        await soon(router.activate(transport))
        assert await soon(first()) == "first"

        @atask(namespace=site.namespace, queue="later")
        async def second() -> str:
            return f"second after {await first()}"

        assert await soon(asyncio.gather(second(), second())) == ["second after first"] * 2
        await soon(router.deactivate(0))

        @atask(namespace=site.namespace, queue="too-late")
        async def third() -> None: ...

        assert router._activation.worker is None


class TestLoopback(OverLoopback, OriginalCases):
    async def test_without_a_transport(self, site: Site) -> None:
        @atask_queue(namespace=site.namespace)
        async def put() -> None: ...

        with pytest.raises(NotConnected):
            await put()
        with pytest.raises(NotConnected):
            await get_router(site.namespace).activate_queue(f"{put.__module__}.put")


class TestLocalHub(OverLocalHub, OriginalCases):
    pass


class TestAMQP(OverAMQP, OriginalCases):
    async def test_a_queue_is_left(self, site: Site, instances: Any) -> None:
        done: list[int] = []

        @atask_queue(name="put", namespace=site.namespace)
        async def put(n: int) -> None:
            done.append(n)

        (one, transport), (two, other) = instances
        await soon(one.activate_queue("put", transport))
        await soon(put(1))
        await until(lambda: done == [1])
        await soon(one.deactivate_queue("put"))
        await soon(put(2))
        states = await transport.queue_states(["queue:put"])
        assert states["queue:put"][1] == 0, "nobody consumes it"
        assert done == [1]
        await soon(two.activate_queue("put", other))
        await until(lambda: done == [1, 2])
