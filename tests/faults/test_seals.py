"""Sealed calls over faults: nothing is lost, neither by keys that change nor by beginning with keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import Transport, WorkerLost
from atasks.pipeline import bind, map
from atasks.signing import keyfile
from atasks.testing import until
from atasks.transport.backends.amqp import AMQPTransport
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import counting, crash, echo, fib, flaky, gated, passed, work
from tests.faults.workers import Fleet
from tests.keys import KeyFiles

QUEUE_TYPES = ["classic", "quorum"]


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    folder = tmp_path / "keys"
    folder.mkdir()
    return KeyFiles(folder, shop="")


@pytest.fixture
async def caller(
    node: Broker, prefix: str, cleanup: None, no_leaked_tasks: None, keys: KeyFiles
) -> AsyncIterator[AMQPTransport]:
    """Connected with a key of its own."""
    async with atasks.connect(node.url, prefix=prefix, keys=keys.caller("shop")) as transport:
        assert isinstance(transport, AMQPTransport)
        yield transport
        assert transport.session.seals is not None
        assert dict(transport.session.seals.refused) == {}


def check_nothing_refused(fleet: Fleet) -> None:
    """No worker refused a message, and none said a secret."""
    logs = fleet.logs()
    assert "messages were refused" not in logs


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_calls_of_a_killed_worker_complete_at_another(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str, caller: Transport, keys: KeyFiles
) -> None:
    gate = tmp_path / "gate"
    options: dict[str, Any] = {"queue_type": queue_type, "keys": str(keys.worker)}
    victim = fleet.start_one(concurrency=10, **options)
    calls = history.start(20, gated, str(gate))
    once = history.start(5, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() >= 10, "the victim has all slots in use")
    fleet.start(concurrency=100, **options)
    await until(lambda: history.started() == 25, "the others run at the second worker")
    victim.kill()
    await asyncio.sleep(0.5)
    gate.touch()
    await settled(asyncio.gather(*calls), "20 calls")
    await settled(asyncio.gather(*once), "5 calls that run at most once")
    history.check()
    await fleet.quiet()
    assert 2 in [run.attempt for run in history.runs()]
    check_nothing_refused(fleet)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_a_call_that_kills_its_workers_runs_as_often_as_it_may(
    fleet: Fleet, history: History, queue_type: str, caller: Transport, keys: KeyFiles
) -> None:
    fleet.start(3, queue_type=queue_type, keys=str(keys.worker))
    (call,) = history.start(1, crash, "kill", max_attempts=2)
    ended = await settled(call, "the call")
    assert isinstance(ended.error, WorkerLost)
    assert len(history.runs()) == 2
    check_nothing_refused(fleet)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_calls_survive_a_restart_of_the_broker(
    fleet: Fleet, history: History, queue_type: str, node: Broker, caller: Transport, keys: KeyFiles
) -> None:
    fleet.start(2, queue_type=queue_type, keys=str(keys.worker))
    calls = history.start(200, work, 0.5)
    await until(lambda: history.started() > 50, "calls run")
    await asyncio.to_thread(node.stop)
    await asyncio.to_thread(node.start)
    await settled(asyncio.gather(*calls), "200 calls")
    history.completed()
    history.check()
    check_nothing_refused(fleet)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_long_calls_move_to_leases_and_survive_their_worker(
    fleet: Fleet, history: History, queue_type: str, tmp_path: Path, caller: Transport, keys: KeyFiles
) -> None:
    gate = tmp_path / "gate"
    options: dict[str, Any] = {"queue_type": queue_type, "keys": str(keys.worker), "consumer_timeout": 3}
    victim = fleet.start_one(**options)
    (call,) = history.start(1, gated, str(gate))
    await until(lambda: history.started() == 1, "it runs")
    await asyncio.sleep(4.5)  # it has moved to a lease at least once
    fleet.start(1, **options)
    victim.kill()
    await until(lambda: history.started() == 2, "it runs at the other worker")
    gate.touch()
    await settled(call, "the call")
    history.completed()
    check_nothing_refused(fleet)


async def test_a_lease_that_comes_back_to_its_own_worker_is_no_recording(
    fleet: Fleet, history: History, tmp_path: Path, caller: Transport, keys: KeyFiles, proxy: Proxy
) -> None:
    gate = tmp_path / "gate"
    worker = fleet.start_one(url=proxy.url(), keys=str(keys.worker), consumer_timeout=3)
    (call,) = history.start(1, gated, str(gate))
    await until(lambda: history.started() == 1, "it runs")
    await asyncio.sleep(4.5)  # it has moved to a lease at least once
    assert await asyncio.to_thread(proxy.drop)
    await until(lambda: " is restored" in worker.output, "the worker is back")
    await asyncio.sleep(3.0)  # the lease has expired, and come by the work queue
    check_nothing_refused(fleet)
    gate.touch()
    await settled(call, "the call")
    history.completed()
    assert [run.attempt for run in history.runs()] == [1]
    await fleet.quiet()
    assert not [queue for queue in fleet.queues() if queue.name.endswith(".dead") and queue.messages]


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_what_a_drain_gives_back_runs_at_another_worker(
    fleet: Fleet, history: History, queue_type: str, tmp_path: Path, caller: Transport, keys: KeyFiles
) -> None:
    gate = tmp_path / "gate"
    options: dict[str, Any] = {"queue_type": queue_type, "keys": str(keys.worker)}
    first = fleet.start_one(concurrency=20, grace=0.2, **options)
    calls = history.start(10, gated, str(gate))
    await until(lambda: history.started() == 10, "they run")
    fleet.start(1, **options)
    assert await asyncio.to_thread(first.stop) == 0
    await until(lambda: history.started() == 20, "they run at the other worker")
    gate.touch()
    await settled(asyncio.gather(*calls), "10 calls")
    history.completed()
    check_nothing_refused(fleet)


@pytest.mark.parametrize(
    ("encrypt", "queue_type"), [("", "classic"), ("encrypt", "classic"), ("encrypt", "quorum")]
)
async def test_streams_nested_calls_runs_and_tries(
    fleet: Fleet, node: Broker, prefix: str, cleanup: None, tmp_path: Path, encrypt: str, queue_type: str
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    keys = KeyFiles(folder, shop=encrypt)
    gates = tmp_path / "gates"
    gates.mkdir()
    for name in "012":
        (gates / name).touch()
    fleet.start(2, queue_type=queue_type, keys=str(keys.worker))
    async with atasks.connect(node.url, prefix=prefix, keys=keys.caller("shop")):
        numbers = [number async for number, _ in counting("stream", 50, str(gates))]
        assert numbers == list(range(50))
        assert await settled(fib(9), "a tree of calls") == 34
        run = await (map(passed, bind=bind(str(gates), 0)) | map(passed, bind=bind(str(gates), 1))).submit([])
        fleet.workers[0].kill()
        assert await settled(run, "a run") == [0, 1]
        trying = flaky.options(retry=atasks.Retry(on=RuntimeError, wait=0.01, jitter=0.0))
        assert await settled(trying(3), "a call that is tried again") == 3
        assert await settled(await trying.submit(4), "a submitted call that is tried again") == 4
    check_nothing_refused(fleet)


@asynccontextmanager
async def load(history: History, seconds: float) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Calls, all the time, which are awaited at the end: none may be lost, or be late."""
    calls: list[asyncio.Task[Any]] = []
    ended = asyncio.Event()

    async def call() -> None:
        while not ended.is_set():
            calls.extend(history.start(5, echo, timeout=20))
            calls.extend(history.start(1, work, 0.2, timeout=20))
            await asyncio.sleep(0.02)

    calling = asyncio.create_task(call())
    yield calls
    await asyncio.sleep(seconds)
    ended.set()
    await calling
    await settled(asyncio.gather(*calls), "the calls")
    history.completed()
    history.check()


@pytest.mark.parametrize(("pause", "queue_type"), [(0.0, "classic"), (0.1, "classic"), (0.0, "quorum")])
async def test_keys_change_under_load(
    fleet: Fleet, history: History, caller: AMQPTransport, keys: KeyFiles, pause: float, queue_type: str
) -> None:
    fleet.start(2, queue_type=queue_type, keys=str(keys.worker))
    assert caller.session.seals is not None
    async with load(history, 1.0) as calls:
        await asyncio.sleep(1.0)
        for number in (2, 3):
            old = keys.lines[f"shop{number - 1}" if number > 2 else "shop"]
            new = keyfile.new_line(f"shop{number}")
            keys.lines[f"shop{number}"] = new
            keys.update()  # added everywhere
            await asyncio.sleep(pause)
            keys.write("shop", new, old)
            caller.session.seals.keys.reread()  # moved to the top
            before = list(calls)
            await asyncio.sleep(0.5)
            keys.write("shop", new)
            caller.session.seals.keys.reread()
            await asyncio.sleep(1.0)
            await settled(asyncio.gather(*before), "the calls under the old key")
            del keys.lines[old.split()[0]]
            keys.update()  # removed
        assert len(calls) > 100
    check_nothing_refused(fleet)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_keys_begin_under_load(
    fleet: Fleet, history: History, node: Broker, prefix: str, cleanup: None, keys: KeyFiles, queue_type: str
) -> None:
    """Workers with keys that accept what has none, then callers with keys, then workers that refuse."""
    sealing: dict[str, Any] = {"queue_type": queue_type, "keys": str(keys.worker)}
    accepting = {**sealing, "unsealed": "accept"}
    old = fleet.start(2, queue_type=queue_type)
    async with atasks.connect(node.url, prefix=prefix) as before:
        async with load(history, 0.5):
            trees = [asyncio.create_task(fib(8)) for _ in range(3)]
            for worker in old:
                fleet.start(1, **accepting)
                trees.append(asyncio.create_task(fib(8)))
                assert await asyncio.to_thread(worker.stop) == 0
            assert await settled(asyncio.gather(*trees), "the trees") == [21] * 5
        assert isinstance(before, AMQPTransport)
        async with (
            atasks.connect(node.url, prefix=prefix, keys=keys.caller("shop")) as after,
            load(history, 0.5),
        ):
            assert isinstance(after, AMQPTransport)
            between = [worker for worker in fleet.workers if worker.running]
            trees = [asyncio.create_task(fib(8)) for _ in range(3)]
            for worker in between:
                fleet.start(1, **sealing)
                trees.append(asyncio.create_task(fib(8)))
                assert await asyncio.to_thread(worker.stop) == 0
            assert await settled(asyncio.gather(*trees), "the trees") == [21] * 5
            assert after.session.seals is not None
            assert dict(after.session.seals.refused) == {}
    check_nothing_refused(fleet)
