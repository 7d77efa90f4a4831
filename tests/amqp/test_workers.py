"""Several workers, several queues: who runs which call, and in which order."""

# Private attributes: `WorkerPresence._homeless`: calls that the broker returned are seen nowhere else. `_served`
# is cleared, not to wait until it is forgotten.

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

import pytest

import atasks
from atasks import NoWorker, current_call, get_router
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.conftest import NewTransport
from tests.amqp.peer import Peer


@pytest.fixture
def priority_site(new_transport: NewTransport) -> Any:
    site = Site(lambda namespace: new_transport(namespace, max_priority=3))
    yield site
    site.close()


async def test_calls_spread_over_workers(site: Site) -> None:
    both = asyncio.Barrier(2)

    @site.atask
    async def meet() -> str:
        await both.wait()  # returns only when both workers, with one slot each, run one
        state: str = current_call().state
        return state

    async with site.open(serve=False):
        for name in ("one", "two"):
            await site.serve(concurrency=1, state=name)
        found = Counter(await soon(asyncio.gather(*(meet() for _ in range(20)))))
        assert found == {"one": 10, "two": 10}


async def test_nested_calls_use_every_worker(site: Site) -> None:
    @site.atask
    async def fib(n: int) -> tuple[int, set[str]]:
        here = {current_call().state}
        if n < 2:
            return n, here
        (a, first), (b, second) = await asyncio.gather(fib(n - 1), fib(n - 2))
        return a + b, here | first | second

    async with site.open(serve=False):
        for name in ("one", "two", "three"):
            await site.serve(concurrency=1, state=name)
        value, states = await soon(fib(10))
        assert value == 55
        assert len(states) > 1


async def test_queue_of_the_atask_and_of_the_call(site: Site) -> None:
    @site.atask(queue="cpu")
    async def where() -> str:
        state: str = current_call().state
        return state

    async with site.open(serve=False):
        for queues in (["cpu"], ["gpu"], ["cpu.2", "gpu.2"]):
            await site.serve(queues=queues, state=queues[0])
        assert await soon(where()) == "cpu"
        assert await soon(where.options(queue="gpu")()) == "gpu"
        assert await soon(where.options(queue="cpu.2")()) == "cpu.2"
        assert await soon(where.options(queue="gpu.2")()) == "cpu.2"
        assert await soon(where()) == "cpu"


async def test_worker_serves_the_queues_of_its_atasks(site: Site) -> None:
    @site.atask(queue="one")
    async def one() -> int:
        return 1

    @site.atask(queue="two")
    async def two() -> int:
        return 2

    @site.atask
    async def default() -> int:
        return 3

    async with site.open():
        assert await soon(asyncio.gather(one(), two(), default())) == [1, 2, 3]
        with pytest.raises(NoWorker, match="'three'"):
            await soon(one.options(queue="three", on_no_worker="error")())


async def test_default_queue_of_the_transport(site: Site, new_transport: NewTransport, peer: Peer) -> None:
    """The original interface: construct, connect, activate."""

    @site.atask
    async def add(a: int, b: int) -> int:
        return a + b

    requests = await peer.declare_work_queue("default")
    transport = new_transport(site.namespace, queue="of-its-own")
    await transport.connect()
    router = get_router(site.namespace)
    await router.activate(transport)
    assert await soon(add(1, 2)) == 3
    assert requests.empty()
    await router.deactivate()
    await transport.disconnect()


async def test_serve_with_lifespan(site: Site, amqp_url: str, prefix: str) -> None:
    events = []

    @asynccontextmanager
    async def pool() -> Any:
        events.append("opened")
        yield {"pool": 1}
        events.append("closed")

    @site.atask
    async def use() -> Any:
        events.append("used")
        return current_call().state

    async with atasks.serve(
        amqp_url, namespace=site.namespace, prefix=prefix, lifespan=pool, concurrency=2
    ) as worker:
        assert worker.concurrency == 2
        async with atasks.connect(amqp_url, namespace=site.namespace, prefix=prefix):
            assert await soon(use()) == {"pool": 1}
        assert await soon(use()) == {"pool": 1}  # over the transport that serves
    assert events == ["opened", "used", "used", "closed"]


async def test_prefixes_are_worlds_apart(site: Site, amqp_url: str, prefix: str) -> None:
    @site.atask(on_no_worker="error")
    async def add(a: int, b: int) -> int:
        return a + b

    async with site.open():
        async with atasks.connect(amqp_url, namespace=site.namespace, prefix=f"{prefix}.other"):
            with pytest.raises(NoWorker):
                await soon(add(1, 2))
        assert await soon(add(1, 2)) == 3


async def test_atask_that_awaits_one_of_another_namespace(site: Site, new_transport: NewTransport) -> None:
    other = Site(new_transport)

    @other.atask
    async def double(n: int) -> tuple[int, str | None]:
        return 2 * n, current_call().parent_id

    @site.atask
    async def outer(n: int) -> tuple[Any, str | None]:
        return await double(n), current_call().id

    async with site.open(concurrency=1), other.open():
        (value, parent), mine = await soon(outer(4))
        assert value == 8
        assert parent == mine
    other.close()


# --- workers that come and go


async def test_worker_that_comes_after_the_call(site: Site) -> None:
    ran = []

    @site.atask
    async def work(n: int) -> int:
        ran.append(n)
        return n

    async with site.open(serve=False):
        waiting = [asyncio.create_task(work(n)) for n in range(20)]
        caller = site.caller
        assert isinstance(caller, AMQPTransport)
        await until(lambda: len(caller.calling.presence._homeless.get("default", ())) == 20)
        late = asyncio.create_task(work(20))
        await site.serve()
        assert await soon(asyncio.gather(*waiting, late)) == list(range(21))
        assert sorted(ran) == list(range(21))


async def test_no_worker_for_a_queue_that_exists(site: Site) -> None:
    @site.atask(on_no_worker="error")
    async def add(a: int, b: int) -> int:
        return a + b

    async with site.open(serve=False):
        with pytest.raises(NoWorker, match="'default'"):
            await soon(add(1, 2))
        worker = await site.serve()
        assert await soon(add(1, 2)) == 3
        await worker.drain()
        caller = site.caller
        assert isinstance(caller, AMQPTransport)
        caller.calling.presence._served.clear()  # that there were consumers is believed for a second
        with pytest.raises(NoWorker, match="'default'"):
            await soon(add(1, 2))


async def test_drain_gives_unstarted_calls_to_another_worker(site: Site) -> None:
    gate = asyncio.Event()
    ran = []

    @site.atask
    async def work(n: int) -> tuple[int, str]:
        ran.append(n)
        if n == 0:
            await gate.wait()
        return n, current_call().state

    async with site.open(serve=False):
        # Each queue has a window of its own, so three calls reach the worker, which has one slot.
        first = await site.serve(concurrency=1, queues=["a", "b", "c"], state="first")
        tasks = [asyncio.create_task(work.options(queue="a")(0))]
        await until(lambda: ran == [0])
        tasks += [asyncio.create_task(work.options(queue=queue)(n)) for n, queue in ((1, "b"), (2, "c"))]
        await until(lambda: first.unstarted == 2)
        draining = asyncio.create_task(first.drain())
        await until(lambda: first.held == 1)
        await site.serve(queues=["a", "b", "c"], state="second")
        assert await soon(asyncio.gather(*tasks[1:])) == [(1, "second"), (2, "second")]
        gate.set()
        assert await soon(tasks[0]) == (0, "first")
        await soon(draining)
        assert sorted(ran) == [0, 1, 2]


async def test_drain_without_grace_gives_running_calls_back(site: Site) -> None:
    gate, ended = asyncio.Event(), []
    attempts = []

    @site.atask
    async def work() -> str:
        state: str = current_call().state
        attempts.append(current_call().attempt)
        if state == "first":
            try:
                await gate.wait()
            finally:
                ended.append(state)
        return state

    async with site.open(serve=False):
        first = await site.serve(state="first")
        task = asyncio.create_task(work())
        await until(lambda: attempts)
        await soon(first.drain(grace=0))
        assert ended == ["first"]
        await site.serve(state="second")
        assert await soon(task) == "second"
        assert attempts == [1, 1]  # a drain charges no attempt


async def test_drain_of_a_worker_whose_calls_await_others(site: Site) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    @site.atask
    async def child() -> int:
        started.set()
        await gate.wait()
        return 1

    @site.atask
    async def parent() -> int:
        return await child() + await child()

    async with site.open(concurrency=1):
        task = asyncio.create_task(parent())
        await soon(started.wait())
        draining = asyncio.create_task(site.worker.drain())
        await asyncio.sleep(0)
        await site.serve(concurrency=1)
        gate.set()
        assert await soon(task) == 2
        await soon(draining)


async def test_draining_twice_is_one_drain(site: Site) -> None:
    @site.atask
    async def work() -> int:
        return 1

    async with site.open():
        await soon(work())
        await soon(asyncio.gather(site.worker.drain(), site.worker.drain(), site.worker.drain(0)))
        await soon(site.worker.wait())


# --- priorities


async def test_priorities(priority_site: Site) -> None:
    site = priority_site
    started, gate = asyncio.Event(), asyncio.Event()
    ran = []

    @site.atask
    async def work(n: int) -> None:
        if n < 0:
            started.set()
            await gate.wait()
        else:
            ran.append(n)

    async with site.open(concurrency=1):
        caller = site.caller
        assert isinstance(caller, AMQPTransport)
        first = asyncio.create_task(work(-1))
        await soon(started.wait())
        rest = [asyncio.create_task(work.options(priority=n, batch=False)(n)) for n in (0, 2, 1, 3, 0, 3)]
        await until(lambda: sum(pending.confirmed for pending in caller.session.pendings.values()) == 7)
        gate.set()
        await soon(asyncio.gather(first, *rest))
        assert ran == [3, 3, 2, 1, 0, 0]


async def test_priorities_are_ignored_on_other_queues(site: Site) -> None:
    @site.atask(priority=3)
    async def work() -> int:
        return 1

    async with site.open():
        assert await soon(work()) == 1
