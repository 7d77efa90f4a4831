"""`sys.exit()` and KeyboardInterrupt in what a call has started: they cost that call only."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from atasks import RemoteError, current_call
from atasks.testing import Site, soon, until
from atasks.testing.cases import Cases
from tests.conformance.transports import OverAMQP, OverLocal, OverLocalHub, OverLoopback, OverMemory


async def leave() -> None:
    sys.exit(3)


async def interrupt() -> None:
    raise KeyboardInterrupt


async def in_a_task() -> None:
    await asyncio.create_task(leave())


async def in_a_task_of_a_task() -> None:
    await asyncio.create_task(in_a_task())


async def interrupted_in_a_task() -> None:
    await asyncio.create_task(interrupt())


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())
        group.create_task(asyncio.sleep(60))


async def in_gather() -> None:
    await asyncio.gather(leave(), asyncio.sleep(0.1))


async def in_an_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.exit, 3)


async def in_a_thread() -> None:
    await asyncio.to_thread(sys.exit, 3)


async def in_its_own_task() -> None:
    sys.exit(3)


async def in_a_task_that_nobody_awaits() -> None:
    task = asyncio.create_task(leave())
    await asyncio.wait([task])
    assert isinstance(task.exception(), SystemExit)


async def in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.01)


async def in_a_done_callback() -> None:
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: sys.exit(3))
    future.set_result(None)
    await asyncio.sleep(0.01)


async def in_a_callback_after_its_end() -> None:
    asyncio.get_running_loop().call_later(0.05, sys.exit, 3)


AWAITED = [
    in_a_task,
    in_a_task_of_a_task,
    interrupted_in_a_task,
    in_a_group,
    in_gather,
    in_an_executor,
    in_a_thread,
    in_its_own_task,
]
LEFT = [in_a_task_that_nobody_awaits, in_a_callback, in_a_done_callback, in_a_callback_after_its_end]


class ExitCases(Cases):
    @pytest.mark.parametrize("function", [*AWAITED, *LEFT], ids=lambda function: function.__name__)
    async def test_it_costs_its_own_call_only(
        self, site: Site, function: Callable[[], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL, "asyncio")
        culprit = site.atask(function)
        runs: list[str | None] = []

        @site.atask
        async def innocent() -> int | None:
            runs.append(current_call().id)
            await asyncio.sleep(0.2)
            return current_call().attempt

        async with site.open():
            calls = [asyncio.create_task(innocent()) for _ in range(8)]
            await until(lambda: runs)
            if function in AWAITED:
                with pytest.raises(RemoteError, match=r"SystemExit|KeyboardInterrupt"):
                    await soon(culprit())
            else:
                assert await soon(culprit()) is None
                await asyncio.sleep(0.1)  # the worker is still there when the timer, which was set before, is due
            assert await soon(asyncio.gather(*calls)) == [1] * 8
            assert len(runs) == len(set(runs)) == 8

    async def test_in_a_task_that_has_awaited_a_call(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """Such a task may go on in the callback that has read the reply, and the exception comes through both."""
        caplog.set_level(logging.CRITICAL, "asyncio")

        @site.atask
        async def inner() -> int:
            return 1

        @site.atask
        async def outer() -> None:
            async def child() -> None:
                await inner()
                sys.exit(3)

            await asyncio.create_task(child())

        async with site.open():
            for _ in range(5):
                with pytest.raises(RemoteError, match="SystemExit"):
                    await soon(outer())
                assert await soon(inner()) == 1

    async def test_a_stream(self, site: Site) -> None:
        @site.atask
        async def numbers() -> AsyncIterator[int]:
            yield 1
            await asyncio.create_task(leave())
            yield 2

        async with site.open():
            if "streams" not in site.caller.supports:
                return
            stream = numbers()
            assert await soon(anext(stream)) == 1
            with pytest.raises(RemoteError, match="SystemExit"):
                await soon(anext(stream))


class TestLoopback(OverLoopback, ExitCases):
    pass


class TestMemory(OverMemory, ExitCases):
    pass


class TestLocal(OverLocal, ExitCases):
    pass


class TestLocalHub(OverLocalHub, ExitCases):
    pass


class TestAMQP(OverAMQP, ExitCases):
    pass
