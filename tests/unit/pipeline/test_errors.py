"""Rule 2: a failure arrives behind what was emitted, as it was raised, and ends everything upstream at once."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

import atasks
from atasks.errors import AbortPipeline, PipelineError
from atasks.pipeline import Pipeline, collect, each, filter, flat_map, from_iterable, group, map, ordered, stage
from tests.unit.pipeline.kinds import Kind, consume


class Sour(Exception):
    """Has more than a message."""

    def __init__(self, degree: int) -> None:
        super().__init__(f"sour: {degree}")
        self.degree = degree


def sour_at_five(x: int) -> int:
    if x == 5:
        raise Sour(x)
    return x


@pytest.mark.parametrize("workers", [1, 3, 60])
@pytest.mark.parametrize("throttle", [0, 1, 64])
async def test_an_exception_at_item_5_of_50_surfaces(kind: Kind, how: str, workers: int, throttle: int) -> None:
    run = range(50) | kind.stage(sour_at_five, workers=workers, throttle=throttle) | map(str)
    with pytest.raises(Sour) as raised:
        await consume(run, how)
    assert raised.value.degree == 5
    (note,) = [note for note in raised.value.__notes__ if "stage" in note]
    assert "sour_at_five" in note
    assert "(5,)" in note


async def test_items_before_the_failure_arrive(kind: Kind) -> None:
    got = []
    with pytest.raises(Sour):
        async for item in range(50) | kind.stage(sour_at_five, workers=1) | map(str):
            got += [item]
    assert got == list("01234")


async def test_it_is_the_same_exception_object() -> None:
    error = Sour(1)

    async def fail(x: int) -> int:
        raise error

    with pytest.raises(Sour) as raised:
        await ([1] | map(fail))
    assert raised.value is error
    with pytest.raises(Sour):
        await ([1] | map(fail))
    assert len(error.__notes__) == 1, "said once, although it was raised twice"


async def test_upstream_stops_and_calls_in_flight_are_cancelled() -> None:
    cancelled: list[int] = []
    pulled: list[int] = []
    together = asyncio.Barrier(3)

    def source() -> Any:
        for number in itertools.count():
            pulled.append(number)
            yield number

    async def wait(x: int) -> int:
        try:
            await together.wait()
            if x == 0:
                raise Sour(x)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(x)
            raise
        return x

    with pytest.raises(Sour):
        await (source() | map(wait, workers=3))
    assert sorted(cancelled) == [1, 2]
    assert pulled == [0, 1, 2]


async def test_downstream_finishes_what_was_emitted() -> None:
    release = asyncio.Event()

    async def slow(x: int) -> int:
        await release.wait()
        return x

    async def fail_late(x: int) -> int:
        if x == 3:
            release.set()
            raise Sour(x)
        return x

    got = []
    with pytest.raises(Sour):
        async for item in range(10) | map(fail_late) | map(slow, workers=5):
            got += [item]
    assert sorted(got) == [0, 1, 2]


async def test_a_failing_source_is_named(how: str) -> None:
    def source() -> Any:
        yield 0
        raise Sour(1)

    async def asource() -> Any:
        yield 0
        raise Sour(1)

    for items in (source(), asource(), from_iterable(source(), inline=True)):
        with pytest.raises(Sour) as raised:
            await consume(items | map(str), how)
        assert raised.value.__notes__ == ["in the source, at item (1,)"]


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
async def test_what_would_end_a_loop_is_not_lost(how: str, error: type[Exception]) -> None:
    def stop(x: int) -> int:
        raise error("x")

    async def astop(x: int) -> int:
        raise error("x")

    for step in (map(stop), map(stop, inline=True), map(astop), stage(stop, join=True), stage(astop, join=True)):
        with pytest.raises(RuntimeError):
            await consume([1] | step, how)


async def test_a_stage_that_cancels_itself_does_not_cancel_the_consumer(how: str) -> None:
    async def cancel(x: int) -> int:
        raise asyncio.CancelledError

    with pytest.raises(PipelineError, match="was cancelled") as raised:
        await consume(range(3) | map(cancel), how)
    assert "cancel" in raised.value.__notes__[0]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_programs_reaches_the_consumer(error: type[BaseException]) -> None:
    async def stop(x: int) -> int:
        raise error("now")

    with pytest.raises(error, match="now"):
        await (range(3) | map(stop))
    with pytest.raises(error, match="now"):
        async for _ in range(3) | map(stop):
            pass


async def test_every_kind_of_stage_passes_errors_on() -> None:
    after: list[Pipeline[..., Any, Any]] = [
        filter(bool),
        each(bool),
        flat_map(lambda x: [x]),
        ordered(),
        collect(),
        collect(2),
        group(str, str),
        stage(list, join=True),
        stage(lambda items: items, join=True, branch=True),
    ]
    for step in after:
        with pytest.raises(Sour):
            await (range(50) | map(sour_at_five) | step)


async def test_skip_errors_drops_the_item(kind: Kind, how: str) -> None:
    run = range(8) | kind.stage(sour_at_five, workers=2, skip_errors=True) | ordered()
    assert await consume(run, how) == [0, 1, 2, 3, 4, 6, 7]


async def test_skip_errors_in_a_branch_keeps_what_was_yielded(how: str) -> None:
    def three(x: int) -> Any:
        yield x
        sour_at_five(x)
        yield -x

    run = range(4, 7) | flat_map(three, skip_errors=True) | ordered()
    assert await consume(run, how) == [4, -4, 5, 6, -6]


async def test_abort_always_stops(kind: Kind, how: str) -> None:
    def stop(x: int) -> int:
        if x == 3:
            raise AbortPipeline("enough")
        return x

    run = range(50) | kind.stage(stop, workers=1, skip_errors=True)
    with pytest.raises(AbortPipeline, match="enough") as raised:
        await consume(run, how)
    assert raised.value.reason == "enough"


async def test_a_failing_remote_stage_shows_where_the_worker_raised(namespace: str) -> None:
    kind = Kind("atask", namespace)
    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(Sour) as raised:
            await (range(50) | kind.stage(sour_at_five))
    assert isinstance(raised.value.__cause__, atasks.RemoteTraceback)


async def test_a_thread_raises_while_another_one_blocks() -> None:
    gate = threading.Event()

    def work(x: int) -> int:
        if x == 1:
            raise Sour(x)
        gate.wait(60)
        return x

    try:
        with pytest.raises(Sour):
            await (range(9) | map(work, workers=2))
        assert not gate.is_set(), "the thread that blocks was not waited for"
    finally:
        gate.set()


async def test_an_infinite_source_with_a_failing_consumer_ends() -> None:
    class Departed(Exception):
        pass

    run = itertools.count() | map(str) | map(len, workers=3)
    with pytest.raises(Departed):
        async for _ in run:
            raise Departed
    await run.aclose()
    with pytest.raises(Sour):
        await (itertools.count() | map(sour_at_five) | map(str, throttle=0))
