"""Options of submitted calls: when they begin, how often they are tried, and the key that one of them has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from atasks import (
    AlreadySubmitted,
    CallCancelled,
    CannotRetry,
    Handle,
    Retry,
    UnknownRun,
    attach,
    current_call,
)
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon, until
from atasks.testing.submitted import gather, refuses

__all__ = ["SubmitOptionCases"]


class SubmitOptionCases(Cases):
    """`f.options(...).submit(x)`: calls with a `delay`, a `retry` or a `unique` key, and failed ones that are run
    again."""

    async def test_delays(self, site: Site) -> None:
        began: dict[int, float] = {}

        @site.atask
        async def note(x: int) -> int:
            began[x] = time.time()
            return x

        async with site.open():
            if refuses(site):
                return
            handles = []
            due = {}
            for x, delay in enumerate((4.0, 0.05, 0.3, 0.0)):  # a longer one holds nothing up
                due[x] = time.time() + delay
                handles.append(await soon(note.options(delay=delay).submit(x)))
            moment = datetime.now(UTC) + timedelta(seconds=0.5)
            due[4] = moment.timestamp()
            handles.append(await soon(note.options(at=moment).submit(4)))
            handles.append(await soon(note.options(at=moment - timedelta(days=1)).submit(5)))
            assert await soon(gather(handles)) == [0, 1, 2, 3, 4, 5]
            early = [x for x in due if began[x] < due[x] - 0.01]  # the clocks of timers and of the wall differ
            assert not early
            assert began[1] < began[0]
            assert began[2] < began[0]

    async def test_delayed_call_without_a_record_and_without_a_worker(self, site: Site) -> None:
        ran = asyncio.Queue[int]()

        @site.atask(keep=0)
        async def note(x: int) -> None:
            ran.put_nowait(x)

        async with site.open(serve=False):
            if refuses(site):
                return
            await soon(note.options(delay=0.1).submit(1))
            await soon(note.options(delay=2.0).submit(2))
            await asyncio.sleep(0.3)  # the first one is due before there is a worker, the second one is not
            await site.serve()
            assert [await soon(ran.get()), await soon(ran.get())] == [1, 2]

    async def test_delayed_call_that_is_cancelled(self, site: Site) -> None:
        ran = asyncio.Queue[int]()

        @site.atask
        async def note(x: int) -> None:
            ran.put_nowait(x)

        async with site.open():
            if refuses(site):
                return
            handle = await soon(note.options(delay=1.5).submit(1))
            assert not await soon(handle.done())
            await soon(handle.cancel())
            await soon(await soon(note.options(delay=1.5).submit(2)))  # which is due later than the first one
            assert [ran.get_nowait(), ran.empty()] == [2, True]

    # -- tries

    async def test_tries(self, site: Site) -> None:
        seen: list[tuple[int, str | None]] = []

        @site.atask(retry=Retry(on=(OSError,), wait=0.01, jitter=0))
        async def work(x: int) -> int:
            call = current_call()
            seen.append((call.try_ or 0, call.key))
            if len(seen) < 3:
                raise OSError("busy")
            return x

        async with site.open(concurrency=1):
            if refuses(site):
                return
            handle = await soon(work.submit(7))
            assert await soon(handle) == 7
            assert seen == [(1, handle.id), (2, handle.id), (3, handle.id)]
            seen.clear()
            handle = await soon(work.options(retry=Retry(on=(OSError,), attempts=2, wait=0, jitter=0)).submit(x=7))
            with pytest.raises(OSError, match="busy"):
                await soon(handle)
            assert len(seen) == 2

    async def test_failed_call_is_run_again(self, site: Site) -> None:
        seen: list[tuple[int, int, str | None]] = []
        bad = True

        @site.atask
        async def work(x: int, *, plus: int = 0) -> int:
            call = current_call()
            seen.append((call.try_ or 0, call.attempt or 0, call.key))
            if bad:
                raise KeyError("not yet")
            return x + plus

        async with site.open(concurrency=1):
            if refuses(site):
                return
            handle = await soon(work.submit(7, plus=2))
            for _ in range(2):
                with pytest.raises(KeyError, match="not yet"):
                    await soon(handle)
                await soon(attach(handle.dumps()).retry())
            with pytest.raises(KeyError, match="not yet"):
                await soon(handle)
            bad = False
            await soon(handle.retry())
            assert await soon(attach(handle.dumps())) == 9
            assert await soon(handle.done())
            assert seen == [(number, 1, handle.id) for number in range(1, 5)]
            with pytest.raises(CannotRetry, match="has ended well"):
                await soon(handle.retry())
            with pytest.raises(UnknownRun):
                await soon(Handle[int]("0" * 32, site.namespace).retry())
            with pytest.raises(UnknownRun, match="keep=0"):
                await (await soon(work.options(keep=0).submit(1))).retry()

    @pytest.mark.parametrize("retry", [None, Retry(on=(OSError,), attempts=2, wait=0, jitter=0)])
    async def test_failed_call_that_resumes_makes_its_steps_again(self, site: Site, retry: Retry | None) -> None:
        made: list[str] = []
        bad = True

        @site.atask
        async def first() -> int:
            made.append("first")
            return 1

        @site.atask
        async def second() -> int:
            made.append("second")
            if bad:
                raise OSError("not yet")
            return 2

        @site.atask(resume=True, retry=retry)
        async def work() -> int:
            return await first() + await second()

        async with site.open():
            if refuses(site):
                return
            handle = await soon(work.submit())
            for _ in range(2):
                with pytest.raises(OSError, match="not yet"):
                    await soon(handle)
                made.clear()
                await soon(handle.retry())
            with pytest.raises(OSError, match="not yet"):
                await soon(handle)
            assert made[:2] == ["first", "second"]
            made.clear()
            bad = False
            await soon(handle.retry())
            assert await soon(handle) == 3
            assert made == ["first", "second"]

    async def test_what_has_not_failed_is_not_run_again(self, site: Site) -> None:
        begun = asyncio.Event()

        @site.atask
        async def forever() -> None:
            begun.set()
            await asyncio.Event().wait()

        async with site.open():
            if refuses(site):
                return
            handle = await soon(forever.submit())
            await soon(begun.wait())
            with pytest.raises(CannotRetry, match="waits or runs still"):
                await soon(handle.retry())
            await soon(handle.cancel())
            with pytest.raises(CannotRetry, match="was cancelled: submit it anew"):
                await soon(handle.retry())

    async def test_call_that_runs_again_keeps_its_key_and_can_be_cancelled(self, site: Site) -> None:
        begun = asyncio.Queue[str | None]()
        gate = asyncio.Event()
        bad = True

        @site.atask(retry=Retry(on=(OSError,), attempts=2, wait=0, jitter=0))
        async def work(x: int) -> int:
            begun.put_nowait(current_call().key)
            if bad:
                raise OSError("busy")
            await gate.wait()
            return x

        async with site.open():
            if refuses(site):
                return
            handle = await soon(work.options(unique="one").submit(1))
            with pytest.raises(OSError, match="busy"):
                await soon(handle)
            bad = False
            await soon(handle.retry())
            assert {await soon(begun.get()) for _ in range(3)} == {handle.id}
            other = await soon(work.options(unique="one").submit(2))
            assert (other.new, other.id) == (False, handle.id)
            assert not await soon(handle.done())
            await soon(handle.cancel())
            with pytest.raises(CallCancelled):
                await soon(other)
            await until(lambda: not site.worker.runs)

    # -- unique keys

    async def test_one_call_for_each_key(self, site: Site) -> None:
        go = asyncio.Event()
        ran: list[int] = []

        @site.atask
        async def work(x: int) -> int:
            ran.append(x)
            await go.wait()
            return x

        async with site.open():
            if refuses(site):
                return
            task = work.options(unique="order 7")
            first = await soon(task.submit(1))
            joined = await soon(task.submit(2))
            skipped = await soon(task.options(on_conflict="skip").submit(3))
            assert [first.new, joined.new, skipped.new] == [True, False, False]
            assert joined == first
            with pytest.raises(AlreadySubmitted, match=first.id):
                await soon(task.options(on_conflict="error").submit(4))
            other = await soon(work.options(unique="order 8").submit(5))
            go.set()
            assert [await soon(handle) for handle in (first, joined, other)] == [1, 1, 5]
            again = await soon(task.submit(6))  # its record is kept: the key is taken
            assert (again.new, again.id) == (False, first.id)
            assert sorted(ran) == [1, 5]

    async def test_many_submissions_of_one_key_at_once(self, site: Site) -> None:
        ran: list[int] = []

        @site.atask
        async def work(x: int) -> int:
            ran.append(x)
            return x

        async with site.open():
            if refuses(site):
                return
            task = work.options(unique="one")
            handles = await soon(asyncio.gather(*(task.submit(x) for x in range(20))))
            assert len({handle.id for handle in handles}) == 1
            assert sum(handle.new for handle in handles) == 1
            results = await soon(gather(handles))
            assert results == ran * 20
            assert len(ran) == 1

    async def test_key_without_a_record_is_free_when_the_call_has_ended(self, site: Site) -> None:
        ran = asyncio.Queue[int]()
        go = asyncio.Event()

        @site.atask(keep=0)
        async def work(x: int) -> None:
            ran.put_nowait(x)
            await go.wait()

        async with site.open():
            if refuses(site):
                return
            task = work.options(unique="mine")
            assert (await soon(task.submit(1))).new
            assert not (await soon(task.submit(2))).new
            assert await soon(ran.get()) == 1
            go.set()

            async def submitted() -> bool:
                return (await task.submit(3)).new

            await until_awaited(submitted)
            assert await soon(ran.get()) == 3  # another call, although its key is the same
            await until_awaited(submitted)
            assert await soon(ran.get()) == 3

    async def test_key_of_a_record_that_has_expired(self, site: Site) -> None:
        ran = asyncio.Queue[int]()

        @site.atask
        async def work(x: int) -> int:
            ran.put_nowait(x)
            return x

        async with site.open():
            if refuses(site):
                return
            task = work.options(unique="short", keep=0.05)
            first = await soon(task.submit(1))
            assert await soon(ran.get()) == 1
            second: list[Handle[int]] = []

            async def submitted() -> bool:
                second[:] = [await task.submit(2)]
                if not second[0].new:
                    await asyncio.sleep(1.2)  # a submission that finds the record uses it
                return second[0].new

            await until_awaited(submitted)
            assert await soon(ran.get()) == 2
            assert second[0].id != first.id
            with pytest.raises(UnknownRun):
                await soon(first)

    async def test_cancelled_call_frees_its_key_with_its_record(self, site: Site) -> None:
        @site.atask(keep=0.05)
        async def forever(x: int) -> None:
            await asyncio.Event().wait()

        async with site.open(serve=False):
            if refuses(site):
                return
            task = forever.options(unique="mine")
            first = await soon(task.options(keep=60).submit(1))
            await soon(first.cancel())
            again = await soon(task.submit(2))
            assert (again.new, again.id) == (False, first.id)
            with pytest.raises(CallCancelled):
                await soon(again)


async def until_awaited(condition: Callable[[], Awaitable[bool]]) -> None:
    """Like `until`, for a condition that is awaited."""

    async def wait() -> None:
        while not await condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)

    await soon(wait())
