"""Schedules: who calls, how often, and until when."""

from __future__ import annotations

import asyncio

import pytest

from atasks import Retry, current_call, schedule, schedules, unschedule
from atasks.testing.cases import Cases
from atasks.testing.events import Heard
from atasks.testing.site import PATIENCE, Site, soon, until

__all__ = ["ScheduleCases"]

PERIOD = 0.2


class ScheduleCases(Cases):
    """Schedules of definitions, and those that are made at run time."""

    @pytest.fixture
    async def heard(self) -> Heard:
        """The notes of the calls of the case."""
        return Heard()

    async def test_schedule_of_a_definition(self, site: Site, heard: Heard) -> None:
        @site.atask(name="tick", every=PERIOD)
        async def tick() -> None:
            await heard.add(current_call().id)

        async with site.open():
            if not site.shares_transport:
                await site.serve()
            ids = await heard.more_than(3)
            assert len(set(ids)) == len(ids)
            (found,) = await soon(schedules(namespace=site.namespace))
            assert (found.name, found.task, found.every, found.defined) == ("tick", "tick", PERIOD, True)
            assert found.next is not None
            await _ended(site, "tick")

    async def test_schedule_at_run_time(self, site: Site, heard: Heard) -> None:
        @site.atask
        async def note(what: str, *, times: int = 1) -> None:
            await heard.add(what * times)

        async with site.open():
            assert await soon(schedules(namespace=site.namespace)) == []
            await soon(schedule("notes", note, ["ab"], {"times": 2}, every=PERIOD))
            assert set(await heard.more_than(2)) == {"abab"}
            await soon(schedule("notes", note, ["c"], every=PERIOD))
            async with asyncio.timeout(PATIENCE):
                while heard.items[-1] != "c":
                    await heard.more_than(len(heard.items))
            (found,) = await soon(schedules(namespace=site.namespace))
            assert (found.name, found.task, found.defined) == ("notes", note.name, False)
            await _ended(site, "notes")
            assert not await soon(unschedule("notes", namespace=site.namespace))
            assert await soon(schedules(namespace=site.namespace)) == []

    async def test_tick_is_tried_again(self, site: Site, heard: Heard) -> None:
        retry = Retry(on=(KeyError,), attempts=2, wait=0.01, jitter=0.0)

        @site.atask(name="tick", every=PERIOD, retry=retry)
        async def tick() -> None:
            await heard.add(("tick", current_call().key, current_call().try_))
            raise KeyError("tick")

        @site.atask
        async def note(what: str) -> None:
            await heard.add((what, current_call().key, current_call().try_))
            raise KeyError(what)

        async with site.open():
            await soon(schedule("notes", note.options(retry=retry), ["note"], every=PERIOD))
            for what in ("tick", "note"):
                async with asyncio.timeout(PATIENCE):
                    while (key := _tried_twice(heard, what)) is None:
                        await heard.more_than(len(heard.items))
                assert sorted(item for item in heard.items if item[1] == key) == [(what, key, 1), (what, key, 2)]
            found = {item.name: item.task for item in await soon(schedules(namespace=site.namespace))}
            assert found == {"tick": "tick", "notes": note.name}
            await _ended(site, "tick")
            await _ended(site, "notes")

    async def test_schedule_waits_for_the_call_before(self, site: Site, heard: Heard) -> None:
        gate = asyncio.Event()

        @site.atask(name="slow")
        async def slow() -> None:
            await heard.add("slow")
            await gate.wait()

        @site.atask(name="eager")
        async def eager() -> None:
            await heard.add("eager")
            await gate.wait()

        async with site.open():
            await soon(schedule("slow", slow, every=PERIOD))
            await soon(schedule("eager", eager, every=PERIOD, overlap="allow"))
            async with asyncio.timeout(PATIENCE):
                while heard.items.count("eager") < 3:
                    await heard.more_than(len(heard.items))
            assert heard.items.count("slow") == 1
            for name in ("slow", "eager"):
                await _ended(site, name)
            gate.set()

    async def test_schedule_goes_on_at_the_next_worker(self, site: Site, heard: Heard) -> None:
        @site.atask(name="tick")
        async def tick() -> None:
            await heard.add(current_call().state)

        async with site.open(state=1):
            await soon(schedule("tick", tick, every=PERIOD))
            await heard.more_than(0)
            if site.shares_transport:  # there is one worker at a time
                await _ended(site, "tick")
                return
            await site.serve(state=2)
            await site.worker.drain(PATIENCE)
            site.workers.pop(0)
            async with asyncio.timeout(PATIENCE):
                while 2 not in heard.items:
                    await heard.more_than(len(heard.items))
            await _ended(site, "tick")

    async def test_schedule_that_makes_no_sense(self, site: Site) -> None:
        @site.atask
        async def note(what: str) -> None:
            pass

        async with site.open():
            for every in (0, -1, "every day", "61 * * * *", float("nan"), 0.01):
                with pytest.raises(ValueError, match="every"):
                    await soon(schedule("notes", note, ["a"], every=every))
            with pytest.raises(ValueError, match="tz"):
                await soon(schedule("notes", note, ["a"], every="* * * * *", tz="Europe/Nowhere"))
            with pytest.raises(TypeError, match="what"):
                await soon(schedule("notes", note, every=1))
            with pytest.raises(TypeError, match="tz="):
                site.atask(tz="UTC")(note.local)
            assert await soon(schedules(namespace=site.namespace)) == []


def _tried_twice(heard: Heard, what: str) -> str | None:
    """The key of a call of this name whose second try has begun; None: there is none yet."""
    return next((key for name, key, number in heard.items if (name, number) == (what, 2)), None)


async def _ended(site: Site, name: str) -> None:
    """Make no more calls for this schedule."""
    assert await soon(unschedule(name, namespace=site.namespace))
    await asyncio.sleep(PERIOD)  # a tick that was due may be made still
    await until(lambda: not site.awaited)
