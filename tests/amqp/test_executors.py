"""Blocking functions, and callers without an event loop, over the broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

import atasks
from atasks import CallTimeout, WorkerLost, atask, current_call
from atasks.namespaces import namespaces
from atasks.testing import PATIENCE, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.unit.serving import happened
from tests.unit.worker import blocking

Serve = Callable[..., AbstractAsyncContextManager[atasks.Worker]]


@pytest.fixture
def serve(amqp_url: str, prefix: str, amqp_leaks: None) -> Serve:
    """Serves tests/unit/worker/blocking.py, or another namespace, in this process."""

    def serve(namespace: str = blocking.NAMESPACE, **options: Any) -> AbstractAsyncContextManager[atasks.Worker]:
        return atasks.serve(amqp_url, namespace=namespace, prefix=prefix, **options)

    return serve


@pytest.fixture
def namespace(prefix: str) -> Iterator[str]:
    name = f"executors-{prefix}"
    yield name
    namespaces.unregister(name)


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


async def test_functions_in_threads_and_processes(serve: Serve) -> None:
    async with serve(processes=2):
        values = await soon(asyncio.gather(*(blocking.echo(n) for n in range(50))))
        others = await soon(asyncio.gather(*(blocking.in_thread(n) for n in range(50))))
        with pytest.raises(blocking.Sized) as caught:
            await soon(blocking.fail(7))
    assert values == list(range(50))
    assert others == list(range(1, 51))
    assert caught.value.size == 7


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_process_stops_when_its_await_ends(how: str, serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with serve(processes=1) as worker:
        await soon(blocking.pid())
        task = asyncio.create_task(blocking.spin.options(timeout=5 if how == "timeout" else None)(str(file)))
        await until(lambda: lines(file))
        if how == "cancel":
            task.cancel()
        with pytest.raises(CallTimeout if how == "timeout" else asyncio.CancelledError):
            await soon(task)
        await until(lambda: not psutil.pid_exists(int(lines(file)[0])))
        await until(lambda: worker.slots.free == worker.concurrency)
        assert await soon(blocking.pid()) != int(lines(file)[0])


async def test_a_process_that_dies(serve: Serve, tmp_path: Path) -> None:
    async with serve(processes=2):
        often = asyncio.create_task(blocking.die(str(tmp_path / "often"), "kill"))
        once = asyncio.create_task(blocking.die.options(delivery="at_most_once")(str(tmp_path / "once"), "kill"))
        others = await soon(asyncio.gather(*(blocking.echo(n) for n in range(20))))
        for task, attempts in ((often, 3), (once, 1)):
            with pytest.raises(WorkerLost) as caught:
                await soon(task)
            assert caught.value.attempts == attempts
    assert others == list(range(20))
    assert (lines(tmp_path / "often"), lines(tmp_path / "once")) == (["1", "2", "3"], ["1"])


async def test_a_drain_gives_back_what_runs_in_a_process(
    serve: Serve, amqp_url: str, prefix: str, tmp_path: Path
) -> None:
    async with atasks.connect(amqp_url, namespace=blocking.NAMESPACE, prefix=prefix):
        task = asyncio.create_task(blocking.spin_once(str(tmp_path / "runs")))
        await asyncio.sleep(0)  # it is sent over this connection, not over a worker's
        async with serve(processes=1, grace=0):
            await until(lambda: lines(tmp_path / "runs"))
            first = int(lines(tmp_path / "runs")[0])
        assert not psutil.pid_exists(first)
        async with serve(processes=1):
            pid, attempt = await soon(task)
    assert lines(tmp_path / "runs") == [str(first), str(pid)]
    assert attempt == 1


async def test_a_drain_gives_back_what_runs_in_a_thread(
    serve: Serve, amqp_url: str, prefix: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    began, gate, runs = threading.Event(), threading.Event(), []

    @atask(namespace=namespace, executor="thread")
    def stubborn() -> list[Any]:
        runs.append(current_call().attempt)
        began.set()
        if len(runs) == 1:
            assert gate.wait(PATIENCE)
        return runs

    async with atasks.connect(amqp_url, namespace=namespace, prefix=prefix):
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)  # it is sent over this connection, not over a worker's
        async with serve(namespace, grace=0):
            await happened(began)
        async with serve(namespace):
            assert await soon(task) == [1, 1]
    gate.set()
    assert "goes on in its thread" in caplog.text


async def test_functions_in_threads_that_call_functions_in_threads(serve: Serve, namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def fib(n: int) -> int:
        return n if n < 2 else fib.sync(n - 1) + fib.sync(n - 2)

    async with serve(namespace, concurrency=1, threads=1), serve(namespace, concurrency=1, threads=1):
        assert await soon(fib(8)) == 21


async def test_synchronous_callers(serve: Serve, amqp_url: str, prefix: str) -> None:
    def program() -> list[int]:
        with (
            atasks.connect_sync(amqp_url, namespace=blocking.NAMESPACE, prefix=prefix),
            ThreadPoolExecutor(4) as views,
        ):
            return list(views.map(blocking.in_thread.sync, range(40)))

    async with serve():
        assert await asyncio.to_thread(program) == list(range(1, 41))


async def test_a_call_that_waits_for_a_place_is_not_taken_for_lost(
    serve: Serve, amqp_url: str, prefix: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller asks for the call, no worker holds it, and the work queue is empty."""
    gate, ran = threading.Event(), []

    @atask(namespace=namespace, executor="thread")
    def work(number: int) -> int:
        ran.append(number)
        assert gate.wait(PATIENCE)
        return number

    monkeypatch.setattr(OverdueCalls, "patience", 0.0)
    monkeypatch.setattr(OverdueCalls, "pause", 0.02)
    monkeypatch.setattr(OverdueCalls, "quick_pause", 0.02)
    async with (
        serve(namespace, concurrency=5, threads=1),
        atasks.connect(amqp_url, namespace=namespace, prefix=prefix) as caller,
    ):
        assert isinstance(caller, AMQPTransport)
        tasks = [asyncio.create_task(work(number)) for number in range(3)]
        await until(lambda: sum(pending.asked >= 4 for pending in caller.session.pendings.values()) == 2)
        gate.set()
        assert await soon(asyncio.gather(*tasks)) == [0, 1, 2]
    assert ran == [0, 1, 2]


async def test_calls_that_wait_for_a_place_are_run_by_workers_that_need_none(
    serve: Serve, amqp_url: str, prefix: str, namespace: str
) -> None:
    """Workers that had the function run in threads are replaced by some that do not."""
    gate, ran = threading.Event(), []

    def register(executor: Literal["thread"] | None) -> atasks.ATask[[int], int]:
        @atask(namespace=namespace, name="work", executor=executor)
        def work(number: int) -> int:
            ran.append((number, executor))
            assert executor is None or gate.wait(PATIENCE)
            return number

        return work

    work = register("thread")
    async with atasks.connect(amqp_url, namespace=namespace, prefix=prefix):
        tasks = [asyncio.create_task(work(number)) for number in range(3)]
        await asyncio.sleep(0)  # they are sent over this connection, not over a worker's
        async with serve(namespace, concurrency=5, threads=1) as worker:
            await until(lambda: ran)
            await until(lambda: (worker.held, worker.unstarted) == (1, 0))
            drain = asyncio.create_task(worker.drain())
            await until(lambda: not worker.accepting)
            gate.set()
            await soon(drain)
        register(None)
        async with serve(namespace):
            assert await soon(asyncio.gather(*tasks)) == [0, 1, 2]
    assert ran == [(0, "thread"), (1, None), (2, None)]
