"""Progress: what calls report of themselves, and who hears it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from atasks import Retry, current_call, sleep
from atasks.errors import UnknownRun
from atasks.pipeline import flat_map, map
from atasks.progress import Progress
from atasks.submitted.handle import Handle
from atasks.testing.cases import Cases
from atasks.testing.site import PATIENCE, Site, soon, until
from atasks.wire import RUN_PIPELINE

__all__ = ["HandleProgressCases", "ProgressCases"]


def does_reports(site: Site) -> bool:
    """The transport moves reports; over another one nothing is heard, and nothing breaks."""
    return "reports" in site.caller.supports


async def heard(reports: Any) -> list[Progress]:
    """All reports that a reader gets who takes each at once."""
    return [progress async for progress in reports]


class ProgressCases(Cases):
    """Watched calls."""

    async def test_progress_until_the_result(self, site: Site) -> None:
        told: list[asyncio.Event] = [asyncio.Event() for _ in range(3)]

        @site.atask
        async def work(pages: int) -> str:
            for done in range(pages):
                current_call().report(done, pages, f"page {done}")
                await told[done].wait()
            current_call().report(pages, pages, "all")
            return "done"

        async with site.open():
            got: list[Progress] = []
            async with asyncio.timeout(PATIENCE), work.watch(3) as call:
                if not does_reports(site):
                    for event in told:
                        event.set()
                async for progress in call.progress():
                    got.append(progress)
                    told[int(min(progress.done, 2))].set()
                assert await call == "done"
                assert await call == "done"
            expected = [Progress(done, 3, f"page {done}") for done in range(3)] + [Progress(3, 3, "all")]
            assert got == (expected if does_reports(site) else [])
            assert await soon(work(3)) == "done"  # a plain call may report too

    async def test_last_progress_of_very_many_comes_before_the_result(self, site: Site) -> None:
        many = 20_000

        @site.atask
        async def work() -> int:
            for done in range(many + 1):
                current_call().report(done, many)
            return many

        @site.atask(executor="thread")
        def block() -> int:
            for done in range(many + 1):
                current_call().report(done, many)
            return many

        async with site.open():
            for task in (work, block):
                async with asyncio.timeout(PATIENCE), task.watch() as call:
                    got = await heard(call.progress())
                    assert await call == many
                if does_reports(site):
                    assert got[-1] == Progress(many, many)
                    assert len(got) < 100
                    assert got == sorted(got)

    async def test_progress_for_a_slow_reader_is_the_latest(self, site: Site) -> None:
        go_on = asyncio.Event()

        @site.atask
        async def work() -> str:
            for done in range(5):
                current_call().report(done, 5)
                await asyncio.sleep(0)
            await go_on.wait()
            return "done"

        async with site.open(), asyncio.timeout(PATIENCE), work.watch() as call:
            if does_reports(site):
                async for first in call.progress():
                    assert first.total == 5
                    break  # and nobody reads on
            go_on.set()
            assert await call == "done"
            rest = await heard(call.progress())
            assert rest == ([Progress(4, 5)] if does_reports(site) else [])

    async def test_progress_of_a_call_that_fails(self, site: Site) -> None:
        @site.atask
        async def work() -> None:
            current_call().report(1, 2)
            raise ValueError("broken")

        async with site.open():
            async with asyncio.timeout(PATIENCE), work.watch() as call:
                got = await heard(call.progress())
                with pytest.raises(ValueError, match="broken"):
                    await call
            assert got == ([Progress(1, 2)] if does_reports(site) else [])

    async def test_progress_left_early_ends_the_call(self, site: Site) -> None:
        ended, release = asyncio.Event(), asyncio.Event()

        @site.atask
        async def work() -> None:
            try:
                for done in itertools.takewhile(lambda _: not release.is_set(), itertools.count()):
                    current_call().report(done)
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        async with site.open():
            call = work.watch()
            with pytest.raises(RuntimeError, match="async with"):
                await call
            async with asyncio.timeout(PATIENCE), call:
                if does_reports(site):
                    assert (await anext(call.progress())).total is None
            if "cancel" not in site.caller.supports:
                release.set()  # a run that has begun goes on, and ends by itself
            elif does_reports(site):
                await soon(ended.wait())
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(RuntimeError, match="begun already"):
                async with call:
                    pass
            with pytest.raises(TypeError):
                work.watch(1)  # type: ignore[call-arg]

    async def test_progress_of_each_try_begins_anew(self, site: Site) -> None:
        @site.atask(retry=Retry(on=(OSError,), attempts=3, wait=0.001, jitter=0.0))
        async def work() -> int:
            this = current_call()
            this.report(1, 2)
            await asyncio.sleep(0.02)
            this.report(2, 2)
            if this.try_ != 3:
                raise OSError("not yet")
            return 3

        async with site.open():
            async with asyncio.timeout(PATIENCE), work.watch() as call:
                got = await heard(call.progress())
                assert await call == 3
            if does_reports(site):
                assert got[-1] == Progress(2, 2, try_=3)
                assert {progress.try_ for progress in got} == {1, 2, 3}
                assert [progress.try_ for progress in got] == sorted(progress.try_ for progress in got)

    async def test_progress_heard_inside_of_another_call(self, site: Site) -> None:
        @site.atask
        async def below(pages: int) -> int:
            for done in range(pages + 1):
                current_call().report(done, pages)
                await asyncio.sleep(0)
            return pages

        @site.atask
        async def above(pages: int) -> tuple[int, list[float]]:
            async with below.watch(pages) as call:
                got = await heard(call.progress())
                return await call, [progress.done for progress in got]

        async with site.open(concurrency=1):
            pages, got = await soon(above(4))
            assert pages == 4
            assert got[-1:] == ([4] if does_reports(site) else [])

    async def test_progress_in_odd_words(self, site: Site) -> None:
        @site.atask
        async def work() -> int:
            report = current_call().report
            for bad in (float("nan"), float("inf"), -float("inf"), 10**400):
                with pytest.raises(ValueError, match="finite"):
                    report(bad)
                with pytest.raises(ValueError, match="finite"):
                    report(1, bad)
            report(2**64, 2**70, "\ud800" + "ü" * 500)
            return 1

        async with site.open():
            async with asyncio.timeout(PATIENCE), work.watch() as call:
                got = await heard(call.progress())
                assert await call == 1
            if does_reports(site):
                (progress,) = got
                assert (progress.done, progress.total) == (2.0**64, 2.0**70)
                assert progress.note == r"\ud800" + "ü" * 194


class HandleProgressCases(Cases):
    """Submitted calls, for transports that have records and move questions to workers."""

    async def test_progress_of_a_submitted_call(self, site: Site) -> None:
        go_on = asyncio.Event()

        @site.atask
        async def work(pages: int) -> str:
            current_call().report(0, pages, "begun")
            await go_on.wait()
            for done in range(1, pages + 1):
                current_call().report(done, pages)
            return "done"

        async with site.open():
            handle = await soon(work.submit(3))
            again = Handle[str](handle.id, site.namespace)
            async with asyncio.timeout(PATIENCE):
                got = []
                async for progress in again.progress():
                    got.append(progress)
                    go_on.set()
                assert got == [Progress(0, 3, "begun"), Progress(3, 3)]
                assert await handle == "done"
                assert await heard(again.progress()) == []

    async def test_progress_of_the_tries_of_a_submitted_call(self, site: Site) -> None:
        watched = asyncio.Event()

        @site.atask(retry=Retry(on=(OSError,), attempts=3, wait=0.001, jitter=0.0))
        async def work() -> int:
            this = current_call()
            this.report(this.try_ or 0, 3)
            await watched.wait()
            if this.try_ != 3:
                raise OSError("not yet")
            return 3

        async with site.open(concurrency=1):
            handle = await soon(work.submit())
            got = []
            async with asyncio.timeout(PATIENCE):
                async for progress in handle.progress():
                    got.append(progress)
                    watched.set()
                assert await handle == 3
            assert got[0] == Progress(1, 3, try_=1)
            assert got[-1] == Progress(3, 3, try_=3)

    async def test_progress_of_a_run_of_a_pipeline(self, site: Site) -> None:
        watched = asyncio.Event()

        @site.atask
        async def numbers(n: int) -> list[int]:
            return list(range(n))

        @site.atask
        async def double(n: int) -> int:
            if n:
                await watched.wait()
            return 2 * n

        async with site.open():
            handle = await soon((flat_map(numbers) | map(double, workers=2)).submit(3))
            got = []
            async with asyncio.timeout(PATIENCE):
                async for progress in handle.progress():
                    got.append(progress)
                    if progress.done == 1:
                        watched.set()
                assert await handle == [0, 2, 4]
            assert (got[-1].done, got[-1].total) == (3, 3)
            assert "double" in got[-1].note

    async def test_progress_of_a_run_is_looked_at_only_when_somebody_asks(self, site: Site) -> None:
        go_on, doubled = asyncio.Event(), 0

        @site.atask
        async def numbers(n: int) -> list[int]:
            return list(range(n))

        @site.atask
        async def double(n: int) -> int:
            nonlocal doubled
            if n:
                await go_on.wait()
            doubled += 1
            return 2 * n

        async with site.open():
            handle = await soon((flat_map(numbers) | map(double, workers=2)).submit(3))
            await until(lambda: doubled == 1 and bool(site.worker.looks), "one item is done")
            (run,) = [run for run in site.worker.runs if run.call.task == RUN_PIPELINE]
            await asyncio.sleep(0.25)
            assert run.progress is not None
            assert run.progress.done == 0
            site.worker.look()
            assert run.progress.done == 1
            go_on.set()
            assert await soon(handle) == [0, 2, 4]
            assert run.progress.done == 3
            assert not site.worker.looks

    async def test_progress_of_a_handle_inside_of_a_call(self, site: Site) -> None:
        seen = False

        @site.atask
        async def below() -> int:
            current_call().report(1, 1)
            while not seen:
                await sleep(0.05)  # which leaves its slot to the other one
            return 1

        @site.atask
        async def above() -> list[float]:
            nonlocal seen
            handle = await below.submit()
            got = []
            async for progress in handle.progress():
                got.append(progress.done)
                seen = True
            await handle
            return got

        async with site.open(concurrency=1):
            assert await soon(above()) == [1]

    async def test_progress_of_what_was_not_kept(self, site: Site) -> None:
        @site.atask(keep=0)
        async def work() -> None: ...

        async with site.open():
            handle = await soon(work.submit())
            with pytest.raises(UnknownRun):
                await soon(heard(handle.progress()))
            with pytest.raises(UnknownRun):
                await soon(heard(Handle[None]("0" * 32, site.namespace).progress()))
