"""Streams whose workers die, whose connections are cut, and whose consumers go."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Literal

import pytest

import atasks
from atasks import RemoteStream, StreamLost
from atasks.testing import until
from tests.broker import Broker
from tests.faults.callers import ReaderProcess
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import counting
from tests.faults.workers import Fleet, WorkerProcess
from tests.pace import keeping_pace

Item = tuple[int, int]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file for which the second half of a stream waits."""
    return tmp_path / "gate"


class Reader:
    """Reads a stream in a task of its own, and keeps what it saw."""

    def __init__(self, stream: RemoteStream[Item], pause: float = 0.0) -> None:
        self.items: list[Item] = []
        self._pause = pause
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: RemoteStream[Item]) -> None:
        async for number, pid in stream:
            self.items.append((number, pid))
            if self._pause:
                await asyncio.sleep(self._pause)

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.items]

    async def half(self, count: int) -> int:
        """Return when the first half of so many items was read: the process that yielded it."""
        await until(lambda: len(self.items) == count // 2 or self.task.done(), "the first half")
        assert self.numbers == list(range(count // 2))
        return self.items[-1][1]


async def read_whole(reader: Reader, count: int, what: str, history: History, key: str, fleet: Fleet) -> None:
    """Return when the reader has read so many items, each once and in order, of one run, and nothing is left."""
    await settled(reader.task, what)
    assert reader.numbers == list(range(count))
    assert [run.attempt for run in history.runs(key)] == [1]
    await fleet.quiet()


def _worker(fleet: Fleet, pid: int) -> WorkerProcess:
    return next(worker for worker in fleet.workers if worker.pid == pid)


@pytest.mark.parametrize("where", ["caller", "worker", "both"])
async def test_a_stream_goes_on_over_cuts_of_either_side(
    fleet: Fleet,
    history: History,
    proxy: Proxy,
    second_proxy: Proxy,
    prefix: str,
    key: str,
    gate: Path,
    where: str,
) -> None:
    gate.touch()
    fleet.start(2, url=second_proxy.url())
    async with atasks.connect(proxy.url(), prefix=prefix):
        count = 2000
        reader = Reader(counting.options(window=50)(key, count, str(gate)), pause=0.001)
        sides = {"caller": [proxy], "worker": [second_proxy], "both": [proxy, second_proxy]}[where]
        before = [side.accepted for side in sides]
        for cut in range(300, count, 300):
            await until(lambda seen=cut: len(reader.items) >= seen, "the stream goes on")
            for side in sides:
                side.drop()
        await read_whole(reader, count, "a stream whose connection was cut", history, key, fleet)
    assert all(side.accepted > accepted for side, accepted in zip(sides, before, strict=True)), "they came back"


@pytest.mark.parametrize("fault", ["half-open", "blackhole"])
async def test_a_stream_goes_on_after_silence(
    fleet: Fleet,
    history: History,
    proxy: Proxy,
    second_proxy: Proxy,
    prefix: str,
    key: str,
    gate: Path,
    fault: str,
) -> None:
    gate.touch()
    fleet.start_one(url=second_proxy.url(heartbeat=1))
    async with atasks.connect(proxy.url(heartbeat=1), prefix=prefix):
        reader = Reader(counting(key, 1000, str(gate)), pause=0.001)
        await until(lambda: len(reader.items) >= 100, "the stream goes on")
        before = [proxy.accepted, second_proxy.accepted]
        for side in (proxy, second_proxy):
            if fault == "half-open":
                side.hold()
            else:
                side.blackhole()
        for side, accepted in zip((proxy, second_proxy), before, strict=True):
            await until(lambda p=side, n=accepted: p.accepted > n, "the client has noticed")
            if fault == "blackhole":
                side.resume()
        await read_whole(reader, 1000, "a stream after silence", history, key, fleet)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("ending", ["stop", "kill"])
async def test_a_stream_goes_on_when_the_broker_restarts(
    fleet: Fleet, history: History, node: Broker, key: str, gate: Path, ending: Literal["stop", "kill"]
) -> None:
    fleet.start_one()
    reader = Reader(counting(key, 200, str(gate)))
    await reader.half(200)
    await asyncio.to_thread(getattr(node, ending))
    gate.touch()
    await asyncio.to_thread(node.start)
    await read_whole(reader, 200, "a stream over a restart of the broker", history, key, fleet)


@pytest.mark.usefixtures("connected")
async def test_a_stream_goes_on_when_its_reply_queue_is_deleted(
    fleet: Fleet, history: History, node: Broker, prefix: str, key: str, gate: Path
) -> None:
    fleet.start(2)
    reader = Reader(counting(key, 200, str(gate)))
    await reader.half(200)
    with node.channel() as channel:
        for queue in node.queues():
            if queue.name.startswith(f"{prefix}.r."):
                channel.queue_delete(queue.name)
    gate.touch()
    await read_whole(reader, 200, "a stream whose reply queue was deleted", history, key, fleet)


@pytest.mark.usefixtures("connected")
async def test_a_killed_worker_loses_its_stream(fleet: Fleet, history: History, key: str, gate: Path) -> None:
    fleet.start(2)
    reader = Reader(counting(key, 40, str(gate)))
    _worker(fleet, await reader.half(40)).kill()
    killed = time.monotonic()
    with pytest.raises(StreamLost, match="replayable=True") as caught:
        await settled(reader.task, "a stream of a dead worker")
    assert time.monotonic() - killed < 15
    assert caught.value.items == 20
    assert reader.numbers == list(range(20))
    assert [run.attempt for run in history.runs(key)] == [1], "nobody ran it in vain"
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_replayable_stream_goes_on_at_another_worker(
    fleet: Fleet, history: History, key: str, gate: Path
) -> None:
    fleet.start(3)
    reader = Reader(counting.options(replayable=True)(key, 40, str(gate)))
    first = await reader.half(40)
    _worker(fleet, first).kill()
    await until(lambda: len(history.runs(key)) == 2, "another worker runs it")
    gate.touch()
    await settled(reader.task, "a stream that is replayed")
    assert reader.numbers == list(range(40))
    assert {pid for number, pid in reader.items if number < 20} == {first}
    assert first not in {pid for number, pid in reader.items if number >= 20}
    assert [run.attempt for run in history.runs(key)] == [1, 2]
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_stream_that_kills_every_worker_is_lost(fleet: Fleet, key: str, gate: Path) -> None:
    fleet.start(4)
    reader = Reader(counting.options(replayable=True)(key, 20, str(gate)))
    await reader.half(20)
    died = 0

    def victims() -> int:
        """Kills whoever runs it: it is the one that holds the message."""
        nonlocal died
        for worker in fleet.workers:
            if worker.running and f"{worker.pid}" in {line.split()[4] for line in starts()}:
                worker.kill()
                died += 1
        return died

    def starts() -> list[str]:
        return [line for line in fleet.record.read_text().splitlines() if line.startswith(f"start {key}")]

    await until(lambda: victims() == 3, "three workers died with it", 60)
    with pytest.raises(StreamLost) as caught:
        await settled(reader.task, "a stream that kills its workers")
    assert caught.value.items == 10
    assert [line.split()[3] for line in starts()] == ["1", "2", "3"]
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_stream_of_which_nothing_was_seen_begins_anew(
    fleet: Fleet, history: History, key: str, gate: Path
) -> None:
    fleet.start(2)
    reader = Reader(counting(key, 1, str(gate)))  # its first item waits for the gate
    await until(lambda: history.runs(key), "it has begun")
    _worker(fleet, history.runs(key)[0].pid).kill()
    await until(lambda: len(history.runs(key)) == 2, "another worker runs it")
    gate.touch()
    await settled(reader.task, "a stream that had not yielded anything")
    assert reader.numbers == [0]
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_an_at_most_once_stream_is_not_replayed(
    fleet: Fleet, history: History, key: str, gate: Path
) -> None:
    fleet.start(2)
    reader = Reader(counting.options(delivery="at_most_once", replayable=True)(key, 40, str(gate)))
    _worker(fleet, await reader.half(40)).kill()
    with pytest.raises(StreamLost) as caught:
        await settled(reader.task, "an at-most-once stream of a dead worker")
    assert caught.value.items == 20
    assert len(history.runs(key)) == 1
    await fleet.quiet()


async def test_a_killed_consumer_stops_the_generator(
    fleet: Fleet, history: History, prefix: str, key: str, gate: Path
) -> None:
    fleet.start_one(caller_patience=1.0)
    reader = ReaderProcess(fleet.broker.url, key, gate, prefix=prefix)
    try:
        await until(lambda: "49\n" in reader.output, "the first half was read")
        reader.kill()
        await until(lambda: history.runs(key)[0].ending is not None, "the generator is closed")
        await fleet.quiet()
    finally:
        reader.close()


@pytest.mark.usefixtures("connected")
async def test_a_worker_that_drains_finishes_its_streams(
    fleet: Fleet, history: History, key: str, gate: Path
) -> None:
    fleet.start(2)
    reader = Reader(counting(key, 40, str(gate)), pause=0.01)
    worker = _worker(fleet, await reader.half(40))
    stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
    gate.touch()
    await settled(reader.task, "a stream of a worker that drains")
    assert await stopping == 0
    assert reader.numbers == list(range(40))
    assert len(history.runs(key)) == 1
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("replayable", [False, True])
async def test_a_stream_past_the_grace_of_its_worker(
    fleet: Fleet, key: str, gate: Path, history: History, replayable: bool
) -> None:
    fleet.start(2, grace=0.2)
    reader = Reader(counting.options(replayable=replayable)(key, 40, str(gate)))
    worker = _worker(fleet, await reader.half(40))
    os.kill(worker.pid, signal.SIGTERM)
    await until(lambda: not worker.running, "it has drained")
    async with keeping_pace() as pace:
        if replayable:
            await until(lambda: len(history.runs(key)) == 2, "another worker runs it")
            gate.touch()
            await settled(reader.task, "a stream past the grace of its worker")
            assert reader.numbers == list(range(40))
            assert [run.attempt for run in history.runs(key)] == [1, 1]
        else:
            with pytest.raises(StreamLost):
                await settled(reader.task, "a stream past the grace of its worker", 40)
            assert reader.numbers == list(range(20))
        assert pace.seconds < 3, "the next worker asks where to go on before it begins"
    await fleet.quiet()
