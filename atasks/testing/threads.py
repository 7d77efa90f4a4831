"""Handles of submitted calls and runs in threads: their methods by `.sync`."""

from __future__ import annotations

import asyncio
import threading

import pytest

from atasks import CallCancelled, CannotRetry, Handle, UnknownRun, attach, current_call
from atasks.pipeline import collect, map
from atasks.progress import Progress
from atasks.testing.cases import Cases
from atasks.testing.site import PATIENCE, Site, soon, until

__all__ = ["HandleInThreadCases"]


def following() -> list[str]:
    """The names of the tasks that follow the progress of a handle."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("atasks progress")]


class HandleInThreadCases(Cases):
    """Submitted calls and runs as threads see them, for transports that have records."""

    async def test_handle_in_a_thread(self, site: Site) -> None:
        bad, begun = True, threading.Event()

        @site.atask
        async def work() -> str:
            if bad:
                raise KeyError("not yet")
            return "done"

        @site.atask
        async def forever() -> None:
            begun.set()
            await asyncio.Event().wait()

        def use() -> None:
            nonlocal bad
            handle = work.submit.sync()
            with pytest.raises(KeyError, match="not yet"):
                handle.sync()
            assert handle.done.sync()
            bad = False
            handle.retry.sync()
            assert handle.sync() == "done"
            with pytest.raises(CannotRetry, match="has ended well"):
                handle.retry.sync()
            with pytest.raises(TypeError, match="step"):
                handle.step.sync(0)

            handle = attach(forever.submit.sync().dumps())
            assert begun.wait(PATIENCE)
            assert not handle.done.sync()
            handle.cancel.sync()
            with pytest.raises(CallCancelled):
                handle.sync()
            assert handle.done.sync()
            with pytest.raises(UnknownRun):
                Handle[int]("0" * 32, site.namespace).done.sync()

        async with site.open():
            await soon(asyncio.to_thread(use))
            handle = await soon(work.submit())
            with pytest.raises(RuntimeError, match=r"`await` handle.done\(\) instead"):
                handle.done.sync()

    async def test_progress_of_a_handle_in_a_thread(self, site: Site) -> None:
        go_on = threading.Event()

        @site.atask
        async def work(pages: int) -> str:
            current_call().report(0, pages, "begun")
            await asyncio.to_thread(go_on.wait)
            for done in range(1, pages + 1):
                current_call().report(done, pages)
            return "done"

        def read() -> list[Progress]:
            handle = work.submit.sync(3)
            for progress in handle.progress.sync():
                assert progress.note == "begun"
                break  # left early, which ends nothing
            got = []
            for progress in attach(handle.dumps()).progress.sync():
                got.append(progress)
                go_on.set()
            assert handle.sync() == "done"
            assert list(handle.progress.sync()) == []
            return got

        async with site.open():
            assert await soon(asyncio.to_thread(read)) == [Progress(0, 3, "begun"), Progress(3, 3)]
            await until(lambda: not following(), "nobody follows")
            reports = Handle[str]("0" * 32, site.namespace).progress.sync()
            with pytest.raises(RuntimeError, match=r"`async for` over handle.progress\(\) instead"):
                next(reports)
            with pytest.raises(UnknownRun):
                await soon(asyncio.to_thread(list, Handle[str]("0" * 32, site.namespace).progress.sync()))

    async def test_step_of_a_run_in_a_thread(self, site: Site) -> None:
        @site.atask
        async def double(n: int) -> int:
            return 2 * n

        @site.atask
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        async with site.open():
            pipeline = map(double) | collect() | map(total)
            run = await soon(asyncio.to_thread(pipeline.submit.sync, 4))
            assert await soon(asyncio.to_thread(run.step.sync, 0)) == 8
            assert await soon(asyncio.to_thread(run.step.sync, number=2)) == 8
            assert await soon(asyncio.to_thread(run.sync)) == 8
            with pytest.raises(IndexError, match="run of 3 stages"):
                await soon(asyncio.to_thread(run.step.sync, 3))
            with pytest.raises(TypeError, match="number"):
                await soon(asyncio.to_thread(run.step.sync))  # type: ignore[call-arg]
            with pytest.raises(RuntimeError, match=r"submit\.sync\(\) blocks"):
                pipeline.submit.sync(4)

    async def test_runs_that_nobody_waits_for(self, site: Site) -> None:
        noted: list[int] = []

        @site.atask
        async def note(n: int) -> None:
            noted.append(n)

        async with site.open():
            map(note).submit.soon(1)
            await asyncio.to_thread(map(note).submit.soon, 2)
            await until(lambda: len(noted) == 2 and not site.awaited, "both have run")
            with pytest.raises(TypeError, match="note"):
                map(note).submit.soon()  # type: ignore[call-arg]

    async def test_handle_inside_of_a_call_in_a_thread(self, site: Site) -> None:
        @site.atask
        async def below() -> int:
            current_call().report(1, 1)
            await asyncio.sleep(0.3)
            return 1

        @site.atask(executor="thread")
        def above() -> tuple[list[float], bool]:
            handle = below.submit.sync()
            return [progress.done for progress in handle.progress.sync()], handle.done.sync()

        async with site.open(concurrency=1):  # it parks, or the call below would never begin
            assert await soon(above()) == ([1], True)
