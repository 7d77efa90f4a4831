"""Errors that say where the call was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import pytest

from atasks import CallConnectionLost, CallError, CallTimeout, StreamLost, WorkerLost, current_call
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon, until

__all__ = ["WhereaboutsCases"]

PLACES: Final = ["worker", "turn", "run", "awaits"]
"""A call waits for a worker, waits in its queue, runs, or runs and awaits another call."""
RUNNING: Final = ["run", "awaits"]


class WhereaboutsCases(Cases):
    """A call that is over before its end says where it was, in words and as attributes; so does a stream."""

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_deadline_says_where_the_call_was(self, site: Site, place: str) -> None:
        calls = _Calls(site, place)
        async with calls.open():
            if _tells(site):
                for error in await calls.errors(timeout=1.5):
                    assert isinstance(error, CallTimeout)
                    assert " did not finish within 1.5 s: " in str(error)
                await calls.close()
                await until(lambda: not site.awaited, "the calls that were awaited have ended")

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_connection_that_is_left_says_where_the_call_was(self, site: Site, place: str) -> None:
        calls = _Calls(site, place)
        async with calls.open():
            if _tells(site):
                for error in await calls.errors(site.caller.disconnect):
                    assert isinstance(error, CallConnectionLost)
                    assert " cannot be known; when last seen, it " in str(error)
                await calls.close()
                if site.shares_transport:  # a worker ends before its transport does, elsewhere
                    await asyncio.gather(*(worker.drain(0) for worker in site.workers))
                await site.caller.connect()

    @pytest.mark.parametrize("place", RUNNING)
    async def test_a_worker_that_shuts_down_says_where_the_call_was(self, site: Site, place: str) -> None:
        calls = _Calls(site, place, delivery="at_most_once")
        async with calls.open():
            if _tells(site):
                for error in await calls.errors(lambda: site.worker.drain(0)):
                    assert isinstance(error, WorkerLost | StreamLost)
                    assert "; when last seen, it " in str(error)


def _tells(site: Site) -> bool:
    """False for a transport of the minimal contract: it tells nobody."""
    return "cancel" in site.caller.supports


class _Calls:
    """A call and a stream that come to one of the places, and what their errors are to say of it."""

    def __init__(self, site: Site, place: str, **options: Any) -> None:
        self._site = site
        self._place = place
        self._inner_ids: dict[str | None, str | None] = {}
        """Id of the call that awaits -> id of the one that it awaits."""
        self._running = 0
        self._first: asyncio.Task[Any] | None = None

        @site.atask
        async def inner() -> None:
            self._inner_ids[current_call().parent_id] = current_call().id
            await asyncio.Event().wait()

        async def wait() -> None:
            self._running += 1
            if place == "awaits":
                with suppress(CallTimeout):  # it has the same deadline
                    await inner()
            await asyncio.Event().wait()

        @site.atask(**options)
        async def outer() -> None:
            await wait()

        @site.atask(**options)
        async def items() -> AsyncIterator[int]:
            await wait()
            yield 1

        self._call, self._stream, self._awaited = outer, items, inner.name

    def open(self) -> AbstractAsyncContextManager[Site]:
        """Open the site, with workers or without."""
        return self._site.open(serve=self._place != "worker", concurrency=1 if self._place == "turn" else 100)

    async def errors(self, end: Callable[[], Awaitable[None]] | None = None, **options: Any) -> list[CallError]:
        """Make the calls, end them once they are there, and return their errors, which say where they were."""
        if self._place == "turn":
            self._first = asyncio.create_task(soon(self._call()))
            await until(lambda: self._running == 1, "the slot is in use")
        made = [self._call.options(**options)(), _whole(self._stream.options(**options)())]
        calls = [asyncio.create_task(soon(call)) for call in made]
        await until(self._are_there, "the calls are in their places")
        if end is not None:
            await end()
        errors = []
        for call in calls:
            with pytest.raises(CallError) as caught:
                await soon(call)
            self._check(caught.value)
            errors.append(caught.value)
        return errors

    def _are_there(self) -> bool:
        if self._place == "awaits":
            return len(self._inner_ids) == 2
        if self._place == "run":
            return self._running == 2
        pendings = self._site.caller.pendings()
        sent = [item for item in pendings if self._site.shares_transport or item.confirmed or item.unheard]
        return len(sent) == (2 if self._first is None else 3)

    def _check(self, error: CallError) -> None:
        runs = self._place in RUNNING
        worker = self._site.worker.id if self._site.workers else None
        assert error.waited_for == ("run" if runs else self._place), error
        assert error.worker == worker or (error.worker is None and self._place == "turn")
        assert (error.ran is not None) == runs
        assert error.awaited == (self._inner_ids[error.call_id] if self._place == "awaits" else None)
        text = str(error)
        if self._place == "worker":
            assert "it waited for a worker, and nothing serves queue 'default'" in text
        elif self._place == "turn":
            assert f"it waited for a slot at worker {worker}" in text or "its turn in queue 'default'" in text
        else:
            awaits = f", and awaited {self._awaited!r} (call {error.awaited})" if error.awaited else ""
            assert f"it ran at worker {worker} for {error.ran:.1f} s{awaits}" in text

    async def close(self) -> None:
        """End the call that was in the way of the others."""
        if self._first is not None:
            self._first.cancel()
            await asyncio.wait([self._first])


async def _whole(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]
