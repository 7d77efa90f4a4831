"""Calls that are tried again, and calls that sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atasks import CallTimeout, Retry, RetryAfter, current_call, sleep
from atasks.current import CurrentCall
from atasks.pipeline import map
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["RetryCases"]

AT_ONCE = Retry(on=(ConnectionError,), wait=0.0, jitter=0.0)


class Flaky:
    """An atask that raises until it was called so often, and notes each of its calls."""

    def __init__(
        self, site: Site, failures: int, error: type[Exception] = ConnectionError, **options: Any
    ) -> None:
        self.calls: list[CurrentCall] = []
        self.failures = failures

        options = {"retry": AT_ONCE, **options}

        @site.atask(name="flaky", **options)
        async def flaky(n: int = 0) -> int:
            self.calls.append(current_call())
            if len(self.calls) <= self.failures:
                raise error(f"failure {len(self.calls)}")
            return n + len(self.calls)

        self.task = flaky


class RetryCases(Cases):
    """Each try is a call of its own, with the same key and the same deadline; a pause holds no slot."""

    async def test_a_call_is_tried_until_it_gives_a_value(self, site: Site) -> None:
        flaky = Flaky(site, 2)
        async with site.open(concurrency=1):
            assert await soon(flaky.task(10)) == 13
            assert [call.try_ for call in flaky.calls] == [1, 2, 3]
            assert len({call.id for call in flaky.calls}) == 3
            assert {call.key for call in flaky.calls} == {flaky.calls[0].id}

    async def test_the_last_exception_is_raised_with_a_note_for_each_earlier_try(self, site: Site) -> None:
        flaky = Flaky(site, 9, retry=Retry(on=ConnectionError, attempts=3, wait=0.0, jitter=0.0))
        async with site.open():
            with pytest.raises(ConnectionError, match="failure 3") as found:
                await soon(flaky.task())
            notes = [note for note in found.value.__notes__ if "try" in note]
            assert [("failure 1" in note, "failure 2" in note) for note in notes] == [(True, False), (False, True)]
            assert len(flaky.calls) == 3

    async def test_what_is_not_named_is_not_tried_again(self, site: Site) -> None:
        flaky = Flaky(site, 1, KeyError)
        async with site.open():
            with pytest.raises(KeyError):
                await soon(flaky.task())
            assert [call.key for call in flaky.calls] == [flaky.calls[0].id]

    async def test_one_call_may_have_another_retry_or_none(self, site: Site) -> None:
        flaky = Flaky(site, 1, KeyError)
        async with site.open():
            assert await soon(flaky.task.options(retry=Retry(on=lambda error: "1" in str(error), wait=0))()) == 2
            flaky.failures = 3
            with pytest.raises(KeyError, match="3"):
                await soon(flaky.task.options(retry=None)())
            assert len(flaky.calls) == 3

    async def test_a_pause_holds_no_slot_and_can_be_cancelled(self, site: Site) -> None:
        flaky = Flaky(site, 1, retry=Retry(on=ConnectionError, wait=3600.0, wait_max=3600.0, until=None))

        @site.atask
        async def parent() -> int:
            return await flaky.task()

        @site.atask
        async def other() -> int:
            return len(flaky.calls)

        async with site.open(concurrency=1):
            if "cancel" not in site.caller.supports:
                return
            waiting = asyncio.create_task(parent())
            while not await soon(other()):  # it is served while the one slot is the parent's no longer
                pass
            for _ in range(5):
                assert await soon(other()) == 1
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(waiting)
            assert len(flaky.calls) == 1

    async def test_the_deadline_is_one_for_all_tries(self, site: Site) -> None:
        flaky = Flaky(site, 9, timeout=300.0)
        waits = Retry(on=ConnectionError, wait=60.0, jitter=0.0)
        async with site.open():
            with pytest.raises(ConnectionError) as found:
                await soon(flaky.task.options(timeout=30.0, retry=waits)())
            assert "deadline" in found.value.__notes__[-1]
            with pytest.raises(ConnectionError) as found:
                await soon(flaky.task.options(retry=Retry(on=ConnectionError, wait=60.0, until=30.0))())
            assert "more than 30 s" in found.value.__notes__[-1]
            flaky.calls.clear()
            flaky.failures = 2
            assert await soon(flaky.task()) == 3
            deadlines = [call.deadline for call in flaky.calls]
            assert all(deadline is not None for deadline in deadlines)
            assert max(deadlines) - min(deadlines) < 60.0  # type: ignore[operator,type-var]

    async def test_a_deadline_that_passes_is_final(self, site: Site) -> None:
        calls = []

        @site.atask(retry=Retry(on=CallTimeout, wait=0.0, jitter=0.0))
        async def stuck() -> None:
            calls.append(current_call().try_)
            await asyncio.Event().wait()

        @site.atask(retry=Retry(on=CallTimeout, wait=0.0, jitter=0.0))
        async def outer() -> int:
            if current_call().try_ == 1:
                await stuck.options(timeout=0.1)()
            return 7

        async with site.open():
            with pytest.raises(CallTimeout):
                await soon(stuck.options(timeout=0.1)())
            assert await soon(outer()) == 7, "it raised one that it had from elsewhere, with time left"

    async def test_the_atask_says_when_to_try_again(self, site: Site) -> None:
        tries = []

        @site.atask(retry=Retry(on=KeyError, wait=3600.0, wait_max=3600.0))
        async def busy() -> str:
            tries.append(current_call().try_)
            if len(tries) < 3:
                raise RetryAfter(0.01 * len(tries)) from KeyError("busy")
            return "done"

        async with site.open():
            assert await soon(busy()) == "done"
            assert tries == [1, 2, 3]
            tries.clear()
            with pytest.raises(RetryAfter) as found:
                await soon(busy.options(retry=None)())
            assert found.value.seconds == 0.01

    async def test_threads_and_pipelines(self, site: Site) -> None:
        flaky = Flaky(site, 2)

        @site.atask(executor="thread")
        def threaded(n: int) -> int:
            return flaky.task.sync(n)

        async with site.open(concurrency=1):
            assert await soon(threaded(10)) == 13
            flaky.calls.clear()
            assert await soon([10] | map(flaky.task)) == [13]

    async def test_submitted_runs(self, site: Site) -> None:
        flaky = Flaky(site, 2)
        pipeline = map(flaky.task)
        async with site.open(concurrency=1):
            if site.caller.records is None:
                return
            assert await soon(await soon(pipeline.submit(10))) == 13
            assert [call.try_ for call in flaky.calls] == [1, 2, 3]

    async def test_a_stream_is_tried_again_before_its_first_item_only(self, site: Site) -> None:
        tries = []

        @site.atask(retry=AT_ONCE)
        async def numbers(early: int, late: bool) -> AsyncIterator[int]:
            tries.append(current_call().try_)
            if len(tries) <= early:
                raise ConnectionError("early")
            yield 1
            if late:
                raise ConnectionError("late")
            yield 2

        @site.atask
        async def reader() -> list[int]:
            return [number async for number in numbers(2, False)]

        async with site.open(concurrency=1):
            if "streams" not in site.caller.supports:
                return
            assert await soon(reader()) == [1, 2]
            assert tries == [1, 2, 3]
            tries.clear()
            stream = numbers(1, True)
            assert await soon(anext(stream)) == 1
            with pytest.raises(ConnectionError, match="late"):
                await soon(anext(stream))
            assert tries == [1, 2]

    async def test_a_call_that_sleeps_holds_no_slot(self, site: Site) -> None:
        asleep = asyncio.Event()

        @site.atask
        async def sleeper() -> None:
            asleep.set()
            await sleep(3600 if "cancel" in site.caller.supports else 0.01)

        @site.atask
        async def other() -> int:
            await sleep(0.001)
            return 5

        async with site.open(concurrency=1):
            sleeping = asyncio.create_task(sleeper())
            await soon(asleep.wait())
            assert await soon(asyncio.gather(*(other() for _ in range(10)))) == [5] * 10
            sleeping.cancel()
            await asyncio.wait((sleeping,))
