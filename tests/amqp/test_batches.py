"""Calls that share a message, and calls that do not."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import msgspec
import pytest

import atasks
from atasks.testing import Site, soon
from atasks.transport.backends.amqp.caller.requests import RequestPacket
from atasks.transport.backends.amqp.caller.run_times import RunTimes
from tests.amqp.peer import Peer


@pytest.mark.parametrize("batch", [False, 1, 7, 64, "auto"])
async def test_calls_that_share_a_message(site: Site, batch: Any) -> None:
    @site.atask(batch=batch)
    async def double(n: int) -> int:
        if n % 10 == 9:
            raise ValueError(n)
        return 2 * n

    async with site.open(concurrency=5):
        for _ in range(3):
            results = await soon(asyncio.gather(*(double(n) for n in range(200)), return_exceptions=True))
            assert [item.args[0] if isinstance(item, ValueError) else item for item in results] == [
                n if n % 10 == 9 else 2 * n for n in range(200)
            ]


async def test_batch_is_one_message(site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")

    @site.atask
    async def work(n: int) -> int:
        return n

    async with site.open(serve=False):
        tasks = [asyncio.create_task(work.options(batch=4)(n)) for n in range(10)]
        sizes = []
        while sum(sizes) < 10:
            sizes.append(len(msgspec.msgpack.decode((await soon(requests.get())).body)))
        assert max(sizes) <= 4
        assert len(sizes) < 10
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_cancelling_one_call_of_a_batch(site: Site) -> None:
    started, gate = asyncio.Semaphore(0), asyncio.Event()

    @site.atask(batch=8)
    async def work(n: int) -> int:
        started.release()
        await gate.wait()
        return n

    async with site.open():
        tasks = [asyncio.create_task(work(n)) for n in range(8)]
        for _ in tasks:
            await soon(started.acquire())
        tasks[3].cancel()
        await asyncio.wait([tasks[3]])
        gate.set()
        assert await soon(asyncio.gather(*tasks[:3], *tasks[4:])) == [0, 1, 2, 4, 5, 6, 7]


async def test_timeout_of_one_call_of_a_batch(site: Site) -> None:
    @site.atask(batch=8)
    async def work(n: int) -> int:
        if n == 3:
            await asyncio.Event().wait()
        return n

    async with site.open():
        options = [work.options(timeout=0.2) if n == 3 else work for n in range(8)]
        results = await soon(asyncio.gather(*(task(n) for n, task in enumerate(options)), return_exceptions=True))
        assert isinstance(results.pop(3), atasks.CallTimeout)
        assert results == [0, 1, 2, 4, 5, 6, 7]


async def test_at_most_once_calls_share_no_message(site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")

    @site.atask(batch=8)
    async def work(n: int) -> int:
        return n

    async with site.open(serve=False):
        once = work.options(delivery="at_most_once")
        tasks = [asyncio.create_task((once if n % 2 else work)(n)) for n in range(20)]
        messages = []
        while sum(map(len, messages)) < 20:
            messages.append(msgspec.msgpack.decode((await soon(requests.get())).body))
        deliveries = [[call[10] for call in message] for message in messages]
        assert all(message == [1] for message in deliveries if 1 in message)
        assert sum(message == [1] for message in deliveries) == 10
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize(
    ("work_us", "options", "shared"),
    [
        (20, {}, True),
        (2_000, {}, False),
        (0, {}, False),
        (20, {"orphan": "run"}, False),
        (20, {"max_attempts": 1}, False),
    ],
)
async def test_calls_that_await_others_share_a_message_by_their_work(
    site: Site, peer: Peer, work_us: int, options: dict[str, Any], shared: bool
) -> None:
    requests = await peer.declare_work_queue("default")

    @site.atask(**options)
    async def work(n: int) -> int:
        return n

    async with site.open(serve=False):
        first = asyncio.create_task(work(0))
        message = await soon(requests.get())
        ((_, _, call_id, *_),) = msgspec.msgpack.decode(message.body)
        assert message.reply_to is not None
        reply = [2, 1, call_id, 0, pickle.dumps(0), "cloudpickle", "a-worker", 500_000, True, work_us]
        await peer.send(reply, queue=message.reply_to)
        assert await soon(first) == 0
        tasks = [asyncio.create_task(work(n)) for n in range(10)]
        sizes: list[int] = []
        while sum(sizes) < 10:
            sizes.append(len(msgspec.msgpack.decode((await soon(requests.get())).body)))
        assert (max(sizes) > 1) is shared
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_calls_that_await_others_come_to_share_messages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    prepare = RequestPacket.prepare

    def counted(packet: RequestPacket) -> bool:
        wanted = prepare(packet)
        sizes.append(len(packet.pendings))
        return wanted

    monkeypatch.setattr(RequestPacket, "prepare", counted)
    observe = RunTimes.observe

    def observe_quick(times: RunTimes, task: str, run_us: int, parked: bool, work_us: int = 0) -> None:
        """On a busy machine short work takes as long as what shares no message."""
        observe(times, task, min(run_us, 100), parked, min(work_us, 100))

    monkeypatch.setattr(RunTimes, "observe", observe_quick)

    @site.atask
    async def tree(depth: int) -> int:
        if not depth:
            return 1
        return 1 + sum(await asyncio.gather(tree(depth - 1), tree(depth - 1)))

    async with site.open():
        for _ in range(10):
            assert await soon(tree(6)) == 127
    assert sum(sizes) == 1270
    assert len(sizes) < 1000


@pytest.mark.parametrize("options", [{"orphan": "run"}, {"max_attempts": 1}])
async def test_calls_that_must_not_come_again_share_no_message_with_calls_that_may_last(
    site: Site, peer: Peer, options: dict[str, Any]
) -> None:
    requests = await peer.declare_work_queue("default")

    @site.atask
    async def parent() -> None: ...

    @site.atask(**options)
    async def audit() -> None: ...

    async def served(task: Any, parked: bool) -> None:
        call = asyncio.create_task(task())
        message = await soon(requests.get())
        ((_, _, call_id, *_),) = msgspec.msgpack.decode(message.body)
        assert message.reply_to is not None
        reply = [2, 1, call_id, 0, pickle.dumps(None), "cloudpickle", "a-worker", 20, parked, 20 * parked]
        await peer.send(reply, queue=message.reply_to)
        await soon(call)

    async with site.open(serve=False):
        await served(parent, parked=True)
        await served(audit, parked=False)
        tasks = [asyncio.create_task(task()) for _ in range(5) for task in (parent, audit)]
        messages: list[list[str]] = []
        while sum(map(len, messages)) < 10:
            calls = msgspec.msgpack.decode((await soon(requests.get())).body)
            messages.append([call[3].rpartition(".")[2] for call in calls])
        assert max(map(len, messages)) > 1
        assert all(len(set(names)) == 1 for names in messages), messages
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
