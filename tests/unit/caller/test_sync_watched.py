"""Watched calls in code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import atasks
from atasks import ATask, NotConnected, NotSupported, current_call
from atasks.progress import Progress
from atasks.tasks import atask
from atasks.testing import soon, until
from tests.unit import serving
from tests.unit.serving import happened, idle, serve
from tests.unit.worker import blocking


@pytest.fixture
def ended() -> threading.Event:
    """Set when the function has ended at its worker."""
    return threading.Event()


@pytest.fixture
def work(namespace: str, ended: threading.Event) -> ATask[[int], int]:
    @atask(namespace=namespace)
    async def work(pages: int) -> int:
        try:
            for done in range(pages + 1):
                current_call().report(done, pages)
            await asyncio.sleep(0.01)
            if pages == 13:
                raise KeyError(pages)
            if pages == 99:
                await asyncio.Event().wait()
            return pages
        finally:
            ended.set()

    return work


def test_progress_until_the_result(work: ATask[[int], int], namespace: str) -> None:
    with atasks.connect_sync(namespace=namespace), work.watch.sync(3) as call:
        assert list(call.progress())[-1] == Progress(3, 3)
        assert (call.result(), call.result(), list(call.progress())) == (3, 3, [Progress(3, 3)])


def test_its_exception_comes_with_the_result(work: ATask[[int], int], namespace: str) -> None:
    with atasks.connect_sync(namespace=namespace), work.watch.sync(13) as call:
        assert list(call.progress())[-1] == Progress(13, 13)
        with pytest.raises(KeyError):
            call.result()


def test_leaving_the_block_ends_the_call(work: ATask[[int], int], namespace: str, ended: threading.Event) -> None:
    with atasks.connect_sync(namespace=namespace):
        with work.watch.sync(99) as call:
            assert next(call.progress()).total == 99
        assert ended.wait(0)
        with pytest.raises(ZeroDivisionError), work.options(timeout=9).watch.sync(99):
            raise ZeroDivisionError
        with pytest.raises(asyncio.CancelledError):
            call.result()
        with pytest.raises(RuntimeError, match="begun already"), call:
            pass


def test_it_refuses_what_a_watched_call_refuses(work: ATask[[int], int]) -> None:
    with pytest.raises(TypeError):
        work.watch.sync()  # type: ignore[call-arg]
    with pytest.raises(NotConnected), work.watch.sync(1):
        pass
    with pytest.raises(RuntimeError, match="has not begun"):
        work.watch.sync(1).result()


async def test_it_refuses_to_block_an_event_loop(work: ATask[[int], int]) -> None:
    with pytest.raises(RuntimeError, match="async with"), work.watch.sync(1):
        pass


async def test_an_atask_in_a_thread_watches_a_call(work: ATask[[int], int], namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def above(pages: int) -> tuple[list[Progress], int]:
        with work.watch.sync(pages) as call:
            return list(call.progress()), call.result()

    async with serve(namespace, concurrency=1, threads=1) as worker:
        reports, result = await soon(above(4))
        await until(lambda: idle(worker))
    assert (reports[-1], result) == (Progress(4, 4), 4)


async def test_the_call_ends_with_that_of_the_thread_that_watches_it(
    work: ATask[[int], int], namespace: str, ended: threading.Event
) -> None:
    began = threading.Event()

    @atask(namespace=namespace, executor="thread")
    def above() -> None:
        with work.watch.sync(99) as call:
            for _ in call.progress():
                began.set()

    async with serve(namespace, concurrency=2) as worker:
        task = asyncio.create_task(above())
        await happened(began)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        await happened(ended)
        await until(lambda: idle(worker))


async def test_a_process_has_no_connection_for_it() -> None:
    async with serving.serve(blocking.NAMESPACE):
        with pytest.raises(NotSupported):
            await soon(blocking.watches())


def follow(call: Any) -> list[Progress]:
    return list(call.progress())


def test_several_threads_read_of_one_call(work: ATask[[int], int], namespace: str) -> None:
    with atasks.connect_sync(namespace=namespace), work.watch.sync(5) as call:
        found: list[list[Progress]] = []
        threads = [threading.Thread(target=lambda: found.append(follow(call))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [reports[-1] for reports in found] == [Progress(5, 5)] * 3
