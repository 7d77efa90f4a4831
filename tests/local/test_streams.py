"""Streams over the local transport whose worker process dies in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atasks
from atasks import StreamLost
from atasks.testing import until
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.hub.listener import Host
from tests.faults.callers import ReaderProcess
from tests.faults.history import History, settled
from tests.faults.tasks import counting, gated
from tests.local.fleet import Fleet
from tests.local.jobs import NAMESPACE, count
from tests.pace import keeping_pace

pytestmark = pytest.mark.timeout(180)

ITEMS = 1000


@pytest.fixture
async def transport(no_leaked_tasks: None) -> AsyncIterator[LocalTransport]:
    async with atasks.local(workers=2, namespace=NAMESPACE) as transport:
        assert isinstance(transport, LocalTransport)
        yield transport


async def collect(stream: AsyncIterator[int], transport: LocalTransport, mark: Path) -> list[int]:
    """The items; every worker process is killed after the first half of them."""
    found = []
    async for item in stream:
        found.append(item)
        if len(found) == ITEMS // 2:
            assert transport.worker_processes is not None
            for pid in transport.worker_processes.pids:
                os.kill(pid, signal.SIGKILL)
            mark.touch()
    return found


async def test_a_replayable_stream_goes_on_in_another_process(transport: LocalTransport, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    stream = count.options(replayable=True)(ITEMS, str(mark))
    assert await settled(collect(stream, transport, mark), "the stream", 60) == list(range(ITEMS))


@pytest.mark.parametrize("drains", ["worker", "server"])
async def test_a_replayable_stream_is_handed_on_by_a_drain_without_a_stall(
    path: str, fleet: Fleet, history: History, tmp_path: Path, no_leaked_tasks: None, drains: str
) -> None:
    """By a worker to another one, or by a server to the next one."""
    gate, drained = tmp_path / "gate", 0.0
    leaving = await fleet.server(concurrency=1, grace=0.2)
    async with atasks.connect(f"unix://{path}"), keeping_pace() as pace:
        if drains == "worker":
            busy = asyncio.create_task(history.call(gated, str(gate), key="busy"))
            await until(lambda: history.runs("busy"), "the server's only slot is in use")
            leaving = await fleet.worker(grace=0.2)
        found: list[int] = []
        async for number, _ in counting.options(replayable=True)("a-stream", 40, str(gate)):
            found.append(number)
            if number == 19:
                assert await asyncio.to_thread(leaving.stop) == 0
                await fleet.start(hub=drains == "server")
                await until(lambda: len(history.runs("a-stream")) == 2, "another process runs it")
                gate.touch()
                drained = pace.seconds
        assert pace.seconds - drained < 3, "it asks where to go on before it begins"
        if drains == "worker":
            await settled(busy, "the call beside it")
    assert found == list(range(40))
    assert [run.attempt for run in history.runs("a-stream")] == [1, 1]


async def test_another_stream_ends_in_stream_lost(transport: LocalTransport, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(StreamLost) as caught:
        await settled(collect(count(ITEMS, str(mark)), transport, mark), "the stream", 60)
    assert caught.value.waited_for == "run"
    assert caught.value.worker is not None
    assert caught.value.ran is not None


async def test_a_stream_without_a_fault(transport: LocalTransport, tmp_path: Path) -> None:
    (mark := tmp_path / "mark").touch()
    assert [item async for item in count(ITEMS, str(mark))] == list(range(ITEMS))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
async def test_a_consumer_that_is_gone_stops_the_generator(
    host: Host, path: str, fleet: Fleet, history: History, tmp_path: Path, how: signal.Signals
) -> None:
    await fleet.worker()
    reader = ReaderProcess(f"unix://{path}", "a-stream", tmp_path / "gate", hub=False)
    try:
        await until(lambda: "49\n" in reader.output, "the first half was read")
        os.kill(reader.pid, how)
        await until(lambda: history.runs("a-stream")[0].ending is not None, "the generator is closed")
        await until(lambda: len(host.hub) == 0, "the hub has forgotten it")
    finally:
        reader.close()
