"""Blocking functions in threads: what they see, how they end, and what they cost the worker when nobody waits."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

import atasks
from atasks import CallCancelled, CallTimeout, RemoteError, current_call
from atasks.tasks import atask
from atasks.testing import PATIENCE, soon, until
from tests.unit.serving import happened, idle, serve


async def test_the_event_loop_goes_on_meanwhile(namespace: str) -> None:
    gate = threading.Event()

    @atask(namespace=namespace, executor="thread")
    def wait() -> str:
        assert gate.wait(PATIENCE)
        return threading.current_thread().name

    @atask(namespace=namespace)
    async def release() -> None:
        gate.set()

    async with serve(namespace):
        waiting = asyncio.create_task(wait())
        await release()
        assert await soon(waiting) == "atasks-thread"


async def test_the_call_and_carried_variables_are_seen_and_no_others(namespace: str) -> None:
    travels = atasks.carry(ContextVar[str](f"travels-{namespace}"))
    stays: ContextVar[str] = ContextVar("stays", default="unset")

    @atask(namespace=namespace, executor="thread")
    def look() -> tuple[Any, ...]:
        call = current_call()
        return (
            call.id,
            call.attempt,
            call.deadline,
            call.parent_id,
            call.root_id,
            call.state,
            travels.get(),
            stays.get(),
        )

    @atask(namespace=namespace)
    async def parent() -> tuple[Any, Any]:
        return current_call().id, await look.options(timeout=60)()

    state = {"pool": 1}

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        yield state

    travels.set("here")
    stays.set("there")
    async with serve(namespace, lifespan=lifespan):
        now = asyncio.get_running_loop().time()
        above, (call_id, attempt, deadline, parent_id, root_id, seen, carried, other) = await soon(parent())
    assert call_id not in (None, above)
    assert (attempt, parent_id, root_id, seen) == (1, above, above, state)
    assert now < deadline <= now + 60 + PATIENCE
    assert (carried, other) == ("here", "unset")


async def test_an_exception_arrives_with_the_traceback_of_the_function_alone(namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def fail() -> None:
        raise KeyError("nothing there", 3)

    async with serve(namespace):
        with pytest.raises(KeyError) as caught:
            await soon(fail())
    assert caught.value.args == ("nothing there", 3)
    lines = str(caught.value.__cause__).strip().splitlines()
    assert "in fail" in lines[1]
    assert [line for line in lines if line.startswith("  File")] == lines[1:2]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (SystemExit(3), RemoteError),
        (KeyboardInterrupt(), RemoteError),
        (StopIteration(1), RuntimeError),
        (asyncio.CancelledError(), CallCancelled),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_what_would_end_a_program_or_a_loop_ends_the_call(
    raised: BaseException, seen: type[Exception], namespace: str
) -> None:
    @atask(namespace=namespace, executor="thread")
    def fail() -> None:
        raise raised

    async with serve(namespace) as worker:
        with pytest.raises(seen):
            await soon(fail())
        await until(lambda: idle(worker))


async def test_a_function_may_use_an_event_loop_of_its_own(namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def run() -> int:
        async def main() -> int:
            await asyncio.sleep(0)
            return 5

        return asyncio.run(main())

    async with serve(namespace):
        assert await soon(run()) == 5


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_an_await_that_ends_early_leaves_the_slot_taken_until_the_function_returns(
    how: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    began, gate, ran = threading.Event(), threading.Event(), []

    @atask(namespace=namespace, executor="thread")
    def stubborn() -> None:
        began.set()
        assert gate.wait(PATIENCE)

    @atask(namespace=namespace)
    async def other() -> None:
        ran.append(1)

    caplog.set_level(logging.INFO, "atasks.worker")
    async with serve(namespace, concurrency=1) as worker:
        if how == "timeout":
            with pytest.raises(CallTimeout):
                await soon(stubborn.options(timeout=1.0)())  # time enough to begin
            await happened(began)
        else:
            task = asyncio.create_task(stubborn())
            await happened(began)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(task)
        await until(lambda: worker.held == 0)
        waiting = asyncio.create_task(other())
        await until(lambda: worker.unstarted == 1)
        assert (worker.slots.free, ran) == (0, [])
        gate.set()
        await soon(waiting)
        assert ran == [1]
        await until(lambda: idle(worker))
    assert "stubborn" in caplog.text
    assert "goes on in its thread, which cannot be stopped: its result is dropped" in caplog.text


async def test_at_most_so_many_run_at_once_and_one_that_is_cancelled_meanwhile_never_runs(namespace: str) -> None:
    lock, running, most, ran = threading.Lock(), [0], [0], []
    gate, both = threading.Event(), threading.Event()

    @atask(namespace=namespace, executor="thread")
    def work(number: int) -> None:
        with lock:
            ran.append(number)
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == 2:
                both.set()
        assert gate.wait(PATIENCE)
        with lock:
            running[0] -= 1

    async with serve(namespace, threads=2) as worker:
        tasks = [asyncio.create_task(work(number)) for number in range(8)]
        await happened(both)
        tasks[5].cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(tasks[5])
        await until(lambda: worker.held == 7)
        gate.set()
        await soon(asyncio.gather(*tasks[:5], *tasks[6:]))
        await until(lambda: idle(worker))
    assert most == [2]
    assert sorted(ran) == [0, 1, 2, 3, 4, 6, 7]


async def test_a_call_that_is_cancelled_before_its_thread_begins_gives_its_place_back(namespace: str) -> None:
    arrived, gate, ran = asyncio.Event(), asyncio.Event(), []

    class Slow(atasks.PickleCodec):
        async def decode_arguments(self, data: bytes, function: Any) -> Any:
            arrived.set()
            await gate.wait()
            return await super().decode_arguments(data, function)

    Slow(namespace)

    @atask(namespace=namespace, executor="thread")
    def work() -> None:
        ran.append(1)

    async with serve(namespace, threads=1) as worker:
        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await arrived.wait()
        await until(lambda: worker.unstarted == 1)
        assert not worker.pools.has_place("thread")
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(tasks[0])
        gate.set()
        await soon(tasks[1])
        await until(lambda: idle(worker))
    assert ran == [1]


async def test_a_drain_leaves_a_thread_behind_and_says_so(
    namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    began, gate, ended = threading.Event(), threading.Event(), threading.Event()

    @atask(namespace=namespace, executor="thread")
    def stubborn() -> None:
        began.set()
        assert gate.wait(PATIENCE)
        ended.set()

    async with serve(namespace):
        task = asyncio.create_task(stubborn())
        await happened(began)
    with pytest.raises(atasks.CallConnectionLost):
        await soon(task)
    (record,) = [record for record in caplog.records if "goes on in its thread" in record.getMessage()]
    assert record.levelno == logging.WARNING
    gate.set()
    await happened(ended)


async def test_threads_are_used_again_and_end_with_the_worker(namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def ident() -> int:
        return threading.get_ident()

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "atasks-thread"]

    before = len(ours())
    async with serve(namespace):
        assert len({await soon(ident()) for _ in range(20)}) == 1
    await until(lambda: len(ours()) <= before)


def test_a_thread_whose_function_returns_between_the_last_turn_and_the_end_of_the_loop(namespace: str) -> None:
    """The loop takes the news and has no turn any more in which it would tell the thread to end."""
    began, gate = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    @atask(namespace=namespace, executor="thread")
    def stubborn() -> None:
        threads.append(threading.current_thread())
        began.set()
        assert gate.wait(PATIENCE)

    async def leave_it_running() -> None:
        async with serve(namespace):
            task = asyncio.create_task(stubborn())
            await happened(began)
        with pytest.raises(atasks.CallConnectionLost):
            await soon(task)

    with asyncio.Runner() as runner:
        runner.run(leave_it_running())
        loop, told = runner.get_loop(), threading.Event()
        call_soon = loop.call_soon_threadsafe

        def tell(*args: Any, **options: Any) -> asyncio.Handle:
            handle = call_soon(*args, **options)
            handle.cancel()
            told.set()
            return handle

        loop.call_soon_threadsafe = tell  # type: ignore[method-assign]
        gate.set()
        assert told.wait(PATIENCE)
        loop.call_soon_threadsafe = call_soon  # type: ignore[method-assign]  # its own threads tell it things too
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()


async def test_arguments_and_exceptions_are_not_kept_alive(namespace: str) -> None:
    class Thing:
        pass

    alive: list[weakref.ref[Thing]] = []

    @atask(namespace=namespace, executor="thread")
    def fail(thing: Thing) -> None:
        alive.append(weakref.ref(thing))
        local = Thing()
        alive.append(weakref.ref(local))
        raise ValueError

    async with serve(namespace):
        gc.disable()
        try:
            with pytest.raises(ValueError):  # noqa: PT011
                await soon(fail(Thing()))
            await until(lambda: [ref() for ref in alive] == [None, None])
        finally:
            gc.enable()


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_functions_for_the_event_loop_and_generators_are_refused(executor: Any, namespace: str) -> None:
    async def coroutine() -> None: ...

    class Callable_:
        async def __call__(self) -> None: ...

    for function in (coroutine, Callable_()):
        with pytest.raises(TypeError, match="coroutine function, which runs on the event loop"):
            atask(function, name="f", namespace=namespace, executor=executor)

    def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        atask(generator, namespace=namespace, executor=executor)


async def test_the_executor_belongs_to_the_decoration(namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def f() -> None: ...

    assert f.executor == f.task_options.executor == f.options(timeout=1).executor == "thread"
    with pytest.raises(
        TypeError, match=r"'executor' is set where the atask is defined, .* @atask\(executor=...\)"
    ):
        f.options(executor=None)  # type: ignore[call-arg]  # that is the point
    with pytest.raises(ValueError, match="executor='fork': one of None, 'thread', 'process'"):
        atask(f.local, namespace=namespace, executor="fork")  # type: ignore[call-overload]  # that is the point


@pytest.mark.parametrize(("option", "value"), [("threads", 0), ("processes", -1), ("threads", 1.5)])
async def test_sizes_are_whole_numbers_above_zero(option: str, value: Any, namespace: str) -> None:
    with pytest.raises((ValueError, TypeError), match=option):
        async with serve(namespace, **{option: value}):
            pass


async def test_default_sizes_follow_the_concurrency(namespace: str) -> None:
    async with serve(namespace, concurrency=1) as worker:
        assert (worker.pools.threads.size, worker.pools.processes.size) == (1, 1)
    async with serve(namespace, concurrency=5000) as worker:
        assert worker.pools.threads.size == 100
        assert 1 <= worker.pools.processes.size < 5000


def test_a_thread_ends_with_its_function_where_the_event_loop_has_ended_before(namespace: str) -> None:
    began, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    @atask(namespace=namespace, executor="thread")
    def wait() -> None:
        threads.append(threading.current_thread())
        began.set()
        assert go_on.wait(PATIENCE)

    async def leave() -> None:
        async with atasks.connect("loopback:", namespace=namespace):
            with pytest.raises(CallTimeout):
                await wait.options(timeout=0.5)()
            assert began.is_set()

    asyncio.run(leave())
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
