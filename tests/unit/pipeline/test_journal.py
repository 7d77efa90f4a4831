"""The journal of a run: what another coordinator knows of the calls of the one before."""

# Private attributes: `Journal._waiting` and `_news`: nothing tells when the last note is written.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

import atasks
from atasks import PayloadTooLarge, atask
from atasks.codecs import get_codec
from atasks.current import new_call_id
from atasks.options import TaskOptions
from atasks.pipeline import collect, filter, flat_map, from_iterable, map
from atasks.pipeline.pipeline import Pipeline
from atasks.pipeline.stages.functions import CallingStage, FunctionStage
from atasks.pipeline.submitted.journal import Journal, Note, StageNotes, begin_id, notes_of
from atasks.testing import soon
from atasks.transport.records.contract import Records
from atasks.wire import VERSION, Call, Reply, Status

LIMIT = 10_000
calls: list[Any] = []
failing: set[int] = set()


@atask
async def never() -> None:
    await asyncio.Event().wait()


async def tenfold(x: int) -> int:
    calls.append(("tenfold", x))
    if x in failing:
        raise ValueError(x)
    return x * 10


async def is_small(x: int) -> bool:
    calls.append(("is_small", x))
    return x < 30


async def pair(x: int) -> list[int]:
    calls.append(("pair", x))
    return [x, x + len(calls)]  # another one each time


async def add_up(xs: list[int]) -> int:
    calls.append(("add_up", xs))
    return sum(xs)


@pytest.fixture(autouse=True)
def forget() -> None:
    calls.clear()
    failing.clear()


@asynccontextmanager
async def recorded() -> AsyncIterator[tuple[Records, str]]:
    """A record, and its id."""
    async with atasks.connect("loopback:") as transport:
        assert transport.records is not None
        codec = get_codec()
        call = Call(VERSION, new_call_id(), never.name, await codec.encode(((), {})), codec.name)
        await soon(transport.records.begin(call, TaskOptions()))
        yield transport.records, call.id


async def journal(records: Records, run_id: str, attempt: int, limit: int = LIMIT) -> Journal:
    """That of an attempt, which knows what is on record."""
    found = notes_of(await records.read(run_id), run_id)
    codec = get_codec()
    made = Journal(records, run_id, attempt, codec, limit, [f"stage-{number}" for number in range(10)])
    contents = [each if isinstance(each, int) else await codec.decode(each.payload) for each in found]
    made.read(contents, range(10))
    return made


async def begin(records: Records, run_id: str, attempt: int) -> None:
    await records.add(run_id, Reply(VERSION, begin_id(run_id, attempt), Status.VALUE, b""))


async def flow(noted: Journal, pipeline: Pipeline[Any, Any, Any], items: list[int]) -> Any:
    """Run the pipeline over the items, with every note written."""
    stages = [
        replace(
            stage,
            notes=StageNotes(
                noted, number, stage.role if isinstance(stage, FunctionStage) else "map", stage.skip_errors
            ),
        )
        if isinstance(stage, CallingStage)
        else stage
        for number, stage in enumerate(pipeline.stages)
    ]
    writing = asyncio.create_task(noted.write())
    try:
        return await soon(_values(from_iterable(items) | Pipeline(*stages)))
    finally:
        while noted._waiting or noted._news.is_set():
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # the last write, in memory
        writing.cancel()
        await asyncio.wait([writing])


def role(stage: CallingStage) -> str:
    return stage.role if isinstance(stage, FunctionStage) else "map"


async def _values(run: Any) -> Any:
    return await run


async def test_calls_that_are_noted_are_not_made_again() -> None:
    async with recorded() as (records, run_id):
        pipeline = map(tenfold, workers=3) | filter(is_small) | flat_map(pair) | collect(2) | map(add_up)
        first = await flow(await journal(records, run_id, 1), pipeline, [0, 1, 2, 3, 4])
        made = list(calls)
        assert len(made) == 5 + 5 + 3 + 3
        assert await flow(await journal(records, run_id, 2), pipeline, [0, 1, 2, 3, 4]) == first
        assert calls == made


async def test_an_item_that_was_dropped_for_its_error_stays_dropped() -> None:
    async with recorded() as (records, run_id):
        pipeline = map(tenfold, skip_errors=True) | collect(2) | map(add_up)
        failing.add(1)
        assert await flow(await journal(records, run_id, 1), pipeline, [0, 1, 2, 3]) == [20, 30]
        failing.clear()  # if it succeeded now, the batches would differ from those that are noted
        assert await flow(await journal(records, run_id, 2), pipeline, [0, 1, 2, 3]) == [20, 30]
        assert len(calls) == 4 + 2


async def test_an_error_that_ends_the_run_is_not_noted() -> None:
    async with recorded() as (records, run_id):
        failing.add(2)
        with pytest.raises(ValueError, match="2"):
            await flow(await journal(records, run_id, 1), map(tenfold), [0, 1, 2])
        failing.clear()
        assert await flow(await journal(records, run_id, 2), map(tenfold), [0, 1, 2]) == [0, 10, 20]
        assert [call for call in calls if call == ("tenfold", 2)] == [("tenfold", 2)] * 2
        assert [call for call in calls if call == ("tenfold", 0)] == [("tenfold", 0)]


async def test_what_an_attempt_notes_after_a_later_one_has_begun_does_not_count() -> None:
    async with recorded() as (records, run_id):
        early = await journal(records, run_id, 1)
        assert await flow(early, map(tenfold), [0]) == [0]
        await begin(records, run_id, 2)
        assert await flow(early, map(tenfold), [7, 8]) == [70, 80]  # of other items, as it happens
        late = await journal(records, run_id, 2)
        assert await flow(late, map(tenfold), [0, 1]) == [0, 10]
        assert calls == [("tenfold", x) for x in (0, 7, 8, 1)]
        assert await flow(await journal(records, run_id, 3), map(tenfold), [0, 1]) == [0, 10]
        assert len(calls) == 4


async def test_notes_of_other_stages_are_left_alone() -> None:
    async with recorded() as (records, run_id):
        await flow(await journal(records, run_id, 1), map(tenfold) | map(tenfold), [1])
        found = notes_of(await records.read(run_id), run_id)
        later = Journal(records, run_id, 2, get_codec(), LIMIT, ["tenfold", "tenfold"])
        later.read(
            [await get_codec().decode(each.payload) for each in found if isinstance(each, Reply)], range(1, 2)
        )
        assert later.recall(0, (0,)) is None
        known = later.recall(1, (0,))
        assert known is not None
        assert known.value == 100
        assert later.recall(1, (0,)) is None


async def test_notes_share_messages_as_large_as_they_may_be() -> None:
    async def blow_up(size: int) -> bytes:
        return bytes(size)

    async with recorded() as (records, run_id):
        assert len(await flow(await journal(records, run_id, 1), map(blow_up, workers=4), [4000] * 8)) == 8
        found = notes_of(await records.read(run_id), run_id)
        assert all(isinstance(each, Reply) and len(each.payload) <= LIMIT for each in found)
        assert 4 <= len(found) <= 8
        noted = await journal(records, run_id, 2)
        writing = asyncio.create_task(noted.write())
        await noted.note(0, (9,), Note(bytes(LIMIT), False))
        with pytest.raises(PayloadTooLarge, match=r"in stage 'stage-0', at item \(9,\)"):
            await soon(writing)
