"""Submitted calls: they run whether anybody awaits them or not, and any process reads what became of them."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from atasks import (
    CallCancelled,
    CallTimeout,
    Handle,
    NotSupported,
    NoWorker,
    UnknownRun,
    UnknownTask,
    attach,
    current_call,
)
from atasks.options import ViewOptions
from atasks.router import get_router
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon, until

__all__ = ["SubmittedCases", "gather", "refuses"]


class SubmittedCases(Cases):
    """`await f.submit(x)` returns when the call is safe, and its handle, anywhere, gives what became of it."""

    async def test_result_and_its_handle(self, site: Site) -> None:
        @site.atask
        async def double(x: int, *, plus: int = 0) -> int:
            return 2 * x + plus

        async with site.open():
            if refuses(site):
                with pytest.raises(NotSupported, match="keeps no results"):
                    await double.submit(1)
                return
            handle = await soon(double.submit(4, plus=1))
            assert handle.new
            assert [await soon(handle), await soon(handle)] == [9, 9]
            assert await soon(handle.done())
            dumped = attach(handle.dumps())
            assert dumped == handle
            assert await soon(dumped) == 9
            assert await soon(Handle[int](handle.id, site.namespace)) == 9
            with pytest.raises(TypeError, match="step"):
                await handle.step(0)

    async def test_exception(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        @site.atask
        async def fail() -> None:
            raise KeyError("this one")

        async with site.open():
            if refuses(site):
                return
            handle = await soon(fail.submit())
            for _ in range(2):
                with pytest.raises(KeyError, match="this one"):
                    await soon(handle)
            await until(lambda: "this one" in caplog.text)  # its worker logs it, with its traceback
            assert "Traceback" in caplog.text

    async def test_call_without_a_record_runs_and_its_failure_is_logged(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        ran = asyncio.Queue[int]()

        @site.atask(keep=0)
        async def note(x: int) -> None:
            ran.put_nowait(x)
            raise ValueError("not kept")

        async with site.open():
            if refuses(site):
                return
            handle = await soon(note.submit(7))
            assert await soon(ran.get()) == 7
            for asked in (handle, handle.done(), handle.cancel(), attach(handle.dumps())):
                with pytest.raises(UnknownRun):
                    await soon(asked)
            await until(lambda: "not kept" in caplog.text)
            assert caplog.text.count("Traceback") >= 1

    async def test_before_there_is_a_worker(self, site: Site) -> None:
        ran = asyncio.Queue[int]()

        @site.atask
        async def note(x: int) -> int:
            ran.put_nowait(x)
            return x

        async with site.open(serve=False):
            if refuses(site):
                return
            handles = [await soon(note.submit(x)) for x in range(3)]
            await soon(note.options(keep=0).submit(3))
            assert not await soon(handles[0].done())
            await site.serve()
            assert sorted([await soon(ran.get()) for _ in range(4)]) == [0, 1, 2, 3]
            assert await soon(gather(handles)) == [0, 1, 2]

    async def test_cancelled_before_it_begins(self, site: Site) -> None:
        ran = asyncio.Queue[int]()

        @site.atask
        async def note(x: int) -> None:
            ran.put_nowait(x)

        async with site.open(serve=False):
            if refuses(site):
                return
            handle = await soon(note.submit(1))
            await soon(handle.cancel())
            await soon(handle.cancel())
            with pytest.raises(CallCancelled, match=handle.id):
                await soon(handle)
            await site.serve()
            await soon(await soon(note.submit(2)))
            assert [ran.get_nowait(), ran.empty()] == [2, True]

    async def test_cancelled_while_it_runs(self, site: Site) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        @site.atask
        async def forever() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with site.open():
            if refuses(site):
                return
            handle = await soon(forever.submit())
            await soon(begun.wait())
            waiting = asyncio.ensure_future(handle)
            await soon(handle.cancel())
            with pytest.raises(CallCancelled):
                await soon(waiting)
            await soon(ended.wait())

    async def test_who_stops_waiting_ends_nothing(self, site: Site) -> None:
        go = asyncio.Event()

        @site.atask
        async def slow() -> str:
            await go.wait()
            return "done"

        async with site.open():
            if refuses(site):
                return
            handle = await soon(slow.submit())
            waiting = asyncio.ensure_future(handle)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(waiting)
            go.set()
            assert await soon(handle) == "done"

    async def test_it_is_no_part_of_the_call_that_submits_it(self, site: Site) -> None:
        @site.atask
        async def inner() -> tuple[str | None, str | None]:
            call = current_call()
            return call.parent_id, call.id

        @site.atask
        async def outer() -> tuple[Any, Any]:
            handle = await inner.submit()
            return await handle, (None, handle.id)

        async with site.open(concurrency=1):  # so that who waits for a handle is parked
            if refuses(site):
                return
            found, expected = await soon(outer())
            assert found == expected

    async def test_timeout_counts_from_the_start(self, site: Site) -> None:
        @site.atask(timeout=0.2)
        async def forever() -> None:
            await asyncio.Event().wait()

        async with site.open():
            if refuses(site):
                return
            with pytest.raises(CallTimeout, match="forever"):
                await soon(await soon(forever.submit()))

    async def test_nobody_knows_the_atask(self, site: Site) -> None:
        @site.atask
        async def known() -> None:
            pass

        async with site.open():
            if refuses(site):
                return
            handle = await soon(site.router.submit("no.such.atask"))
            with pytest.raises(UnknownTask, match=r"no\.such\.atask"):
                await soon(handle)

    async def test_no_worker_and_no_patience(self, site: Site) -> None:
        @site.atask(on_no_worker="error")
        async def known() -> None:
            pass

        async with site.open(serve=False):
            if refuses(site):
                return
            with pytest.raises(NoWorker):
                await soon(known.submit())

    async def test_what_no_submission_has(self, site: Site) -> None:
        @site.atask
        async def known(x: int) -> int:
            return x

        async with site.open():
            found: list[ViewOptions] = [{"delay": 1}, {"at": datetime.now(UTC)}, {"unique": "key"}]
            for options in found:
                view = known.options(**options)
                with pytest.raises(TypeError, match="submit"):
                    await view(1)
                assert await soon(view.options(delay=None, at=None, unique=None)(1)) == 1
            with pytest.raises(TypeError, match="argument"):
                await known.submit(1, 2)  # type: ignore[call-arg]
            with pytest.raises(UnknownRun if not refuses(site) else NotSupported):
                await soon(Handle[Any](uuid.uuid4().hex, site.namespace))

    # -- later


def refuses(site: Site) -> bool:
    """Return True if this transport keeps no calls, and so refuses what is submitted."""
    return get_router(site.namespace).transport().records is None


async def gather(handles: list[Handle[Any]]) -> list[Any]:
    """Return the results of all handles."""
    return await asyncio.gather(*(asyncio.ensure_future(handle) for handle in handles))
