"""Watching workers over a broker: what is left there, and what lost viewers cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from atasks.current import new_call_id
from atasks.testing import Site, until
from atasks.tracking.fleet import Fleet, Heard
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller.listening import listening
from tests.broker import Broker


@pytest.fixture
def watched(prefix: str, amqp_url: str, amqp_leaks: None) -> Site:
    return Site(lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix))


def left(broker: Broker, prefix: str) -> list[str]:
    """Queues and exchanges of who watches."""
    found = [queue.name for queue in broker.queues() if queue.name.startswith(f"{prefix}.w.")]
    exchanges = broker.evaluate(
        '[io_lib:format("~ts~n", [Name]) || {_, _, _, Name} <- rabbit_exchange:list_names()].'
    )
    return [*found, *(name for name in exchanges.split() if name == f"{prefix}.watch")]


async def test_nothing_is_left_of_who_has_watched(watched: Site, controllable_broker: Broker, prefix: str) -> None:
    @watched.atask
    async def echo(n: int) -> int:
        return n

    async with watched.open():
        assert isinstance(watched.caller, AMQPTransport)
        if watched.caller.session.urls[0] != controllable_broker.url:
            return  # the broker of this run was given, and cannot be asked
        watching = Fleet(watched.caller).watch(["ended"])
        first = asyncio.ensure_future(anext(watching))
        await until(lambda: watched.worker.watching is not None)
        await echo(1)
        assert (await first).event.status == "value"
        assert len(await asyncio.to_thread(left, controllable_broker, prefix)) == 2
        await watching.aclose()
        assert await asyncio.to_thread(left, controllable_broker, prefix) == []
    watched.close()


async def test_viewers_that_come_as_others_go(watched: Site) -> None:
    async with watched.open():
        assert isinstance(watched.caller, AMQPTransport)
        session = watched.caller.session

        async def come_and_go() -> None:
            for _ in range(10):  # the last one that goes takes the exchange along
                async with listening(session, new_call_id(), lambda _: None):
                    await asyncio.sleep(0)

        async with asyncio.timeout(60), asyncio.TaskGroup() as viewers:
            for _ in range(8):
                viewers.create_task(come_and_go())
    watched.close()


async def told(heard: asyncio.Future[Heard], echo: Callable[[int], Awaitable[int]]) -> None:
    """Call until the viewer has heard of a call: events are not confirmed, and one may get lost."""
    async with asyncio.timeout(60):
        while not heard.done():
            await echo(1)
            await asyncio.wait([heard], timeout=0.1)
    await heard


async def test_a_viewer_that_is_gone_costs_nothing_but_its_lease(watched: Site, prefix: str) -> None:
    @watched.atask
    async def echo(n: int) -> int:
        return n

    async with watched.open():
        viewer = watched.new_transport()
        assert isinstance(viewer, AMQPTransport)
        await viewer.connect()
        watching = Fleet(viewer).watch(["ended"], lease=1.5)
        first = asyncio.ensure_future(anext(watching))
        await until(lambda: watched.worker.watching is not None)
        await told(first, echo)
        assert viewer.session.link is not None
        await viewer.session.link.close()  # as if its process had died: queue and exchange are gone
        for number in range(30):
            assert await echo(number) == number
        await until(lambda: watched.worker.watching is None, "its lease is over")
        assert await echo(1) == 1
        again = Fleet(watched.caller).watch(["ended"])  # type: ignore[arg-type]
        second = asyncio.ensure_future(anext(again))
        await until(lambda: watched.worker.watching is not None)
        await told(second, echo)
        await again.aclose()
        await watching.aclose()
        await viewer.disconnect()
    watched.close()
