"""Threads that calls have left behind: nothing waits for them past the grace."""

# Private attributes: `_default_executor` of an event loop, `_started` and `_max_workers`: how many threads there
# are is seen nowhere else.

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar

import pytest

import atasks
from atasks.tasks import atask
from atasks.worker.executors.default import DefaultExecutor
from tests.busy import calm
from tests.unit.serving import happened, serve

PROGRAM = """
    import asyncio, signal, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    import atasks
    from atasks import atask

    pool = ThreadPoolExecutor(1)

    @atask
    async def to_thread():
        await asyncio.to_thread(time.sleep, 60)

    @atask
    async def executor():
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)

    @atask
    async def own_pool():
        await asyncio.get_running_loop().run_in_executor(pool, time.sleep, 60)

    @atask
    async def own_thread():
        threading.Thread(target=time.sleep, args=(60,), name="mine").start()

    @atask(executor="thread")
    def thread():
        time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["to_thread", "executor", "thread"])
def test_a_program_that_serves(script: Callable[..., str], kind: str) -> None:
    began = time.monotonic()
    output = script(
        PROGRAM
        + f"""
    async def main():
        async with atasks.serve("loopback:", grace=0.5):
            call = asyncio.create_task({kind}())
            await asyncio.sleep(0.3)
            call.cancel()
            await asyncio.wait([call])
        print("drained")

    import logging
    logging.disable()
    if __name__ == "__main__":
        asyncio.run(main())
        print("ended")
    """
    )
    assert output.split() == ["drained", "ended"]
    assert time.monotonic() - began < 55, "it waited for the thread"


@pytest.mark.parametrize("kind", ["to_thread", "executor", "own_pool", "own_thread", "thread"])
def test_worker_processes_of_a_program(script: Callable[..., str], kind: str) -> None:
    output = script(
        PROGRAM
        + f"""
    import logging
    logging.disable()

    async def main():
        async with atasks.local(workers=1, grace=0.5):
            call = asyncio.create_task({kind}())
            await asyncio.sleep(1.5)
            call.cancel()
            await asyncio.wait([call])
            began = time.monotonic()
        print(time.monotonic() - began)

    if __name__ == "__main__":
        asyncio.run(main())
    """
    )
    assert float(output) < 55, "it waited for the thread"


async def test_threads_that_end_within_the_grace_are_waited_for(namespace: str) -> None:
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        time.sleep(0.4)
        ended.set()

    @atask(namespace=namespace)
    async def call() -> None:
        await asyncio.to_thread(work)

    async with atasks.serve("loopback:", namespace=namespace, grace=20):
        task = asyncio.create_task(call())
        await happened(began)
        task.cancel()
        await asyncio.wait([task])
    assert ended.is_set()


async def test_threads_past_the_grace_are_named(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    began, end = threading.Event(), threading.Event()

    def stay() -> None:
        began.set()
        end.wait(60)

    @atask(namespace=namespace, name="stays")
    async def call() -> None:
        await asyncio.to_thread(stay)

    async with atasks.serve("loopback:", namespace=namespace, grace=0.1):
        task = asyncio.create_task(call())
        await happened(began)
        task.cancel()
        await asyncio.wait([task])
    end.set()
    (record,) = [record for record in calm(caplog.records) if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert message.startswith("task 'stays', call ")
    assert "goes on in thread 'asyncio-call_0', at " in message


async def test_the_default_executor_of_a_loop_that_serves(namespace: str) -> None:
    loop = asyncio.get_running_loop()
    variable = ContextVar[int]("variable", default=0)

    def look() -> tuple[str, bool, int]:
        thread = threading.current_thread()
        return thread.name.split("_")[0], thread.daemon, variable.get()

    @atask(namespace=namespace)
    async def inside() -> list[object]:
        variable.set(5)
        found = [await asyncio.to_thread(look), await loop.run_in_executor(None, look)]
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        return [*found, sum(await asyncio.gather(*(asyncio.to_thread(abs, -n) for n in range(300))))]

    async with serve(namespace):
        assert isinstance(loop._default_executor, DefaultExecutor)  # type: ignore[attr-defined]
        assert await asyncio.to_thread(look) == ("asyncio", False, 0)
        assert await inside() == [("asyncio-call", True, 5), ("asyncio-call", True, 0), 44850]
        executor = loop._default_executor  # type: ignore[attr-defined]
        assert len(executor._started) <= executor._max_workers
        assert not executor.running


def test_a_program_without_standard_streams_leaves_too(script: Callable[..., str]) -> None:
    script("""
        import sys, time
        from atasks.worker.leaving import leave_within

        sys.stdout = None
        leave_within(0.0, 0)
        time.sleep(30)
        raise SystemExit("it did not leave")
    """)
