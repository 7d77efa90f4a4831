"""Runs of pipelines on the workers: what can be submitted, what a handle gives, how runs end. In memory too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import (
    EncodeError,
    NotSupported,
    PipelineError,
    Transport,
    UnknownRun,
    UnknownTask,
    atask,
    current_call,
)
from atasks.pipeline import (
    AbortPipeline,
    Handle,
    Pipeline,
    Stage,
    after,
    attach,
    bind,
    collect,
    each,
    filter,
    flat_map,
    fork,
    group,
    map,
    ordered,
    stage,
)
from atasks.testing import soon
from tests.amqp.conftest import Connect
from tests.pace import keeping_pace

PROMPT = 1.0
"""Seconds within which a failure is known, and as many again for a machine that is busy."""

flying = 0
highest = 0
seen: list[int] = []


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@atask
async def counting(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@atask
async def square(x: int) -> int:
    return x * x


@atask
async def scaled(by: int, x: int, plus: int = 0) -> int:
    return by * x + plus


@atask
async def is_odd(x: int) -> bool:
    return x % 2 == 1


@atask
async def total(xs: list[int]) -> int:
    return sum(xs)


@atask
async def pair_sum(pair: tuple[int, int]) -> int:
    return sum(pair)


@atask
async def note(x: int) -> None:
    seen.append(x)


@atask
async def constant() -> str:
    return "done"


@atask
async def slow_square(x: int) -> int:
    global flying, highest
    flying += 1
    highest = max(highest, flying)
    await asyncio.sleep(0.001 * (7 - x % 7))
    flying -= 1
    return x * x


@atask
async def fails(x: int) -> int:
    raise KeyError(x)


@atask
async def fails_at_three(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


@atask
async def slow_at_three(x: int) -> int:
    if x == 3:
        await asyncio.Event().wait()
    return x


@atask
async def aborts_at_three(x: int) -> int:
    if x == 3:
        raise AbortPipeline("enough")
    return x


@atask
async def as_int(x: int) -> list[int]:
    return x  # type: ignore[return-value]


@atask
async def unencodable(x: int) -> Any:
    return (item for item in "")


@atask
async def parent(x: int) -> tuple[str | None, str | None]:
    return current_call().parent_id, current_call().root_id


@atask
async def never(x: int) -> int:
    await asyncio.Event().wait()
    return x


@atask
async def wants_index(x: int, element_index: tuple[int, ...]) -> int:
    return x


def local(x: int) -> int:
    return x


def scaling(**options: Any) -> Pipeline[[Any], Any, Any]:
    """For the types: `bind` takes parameters away, which a type checker cannot see."""
    return stage(scaled, **options)


def forked(*pipelines: Any) -> Pipeline[[Any], Any, Any]:
    """For the types: lambdas in a table have none."""
    return fork(*pipelines)


async def run(pipeline: Pipeline[..., Any, Any], *args: Any, **kwargs: Any) -> Any:
    return await soon(await soon(pipeline.submit(*args, **kwargs)))


CASES: dict[str, tuple[Callable[[], Pipeline[..., Any, Any]], tuple[Any, ...], Any]] = {
    "one stage": (lambda: stage(square), (3,), 9),
    "a chain": (lambda: stage(square) | stage(square) | stage(square), (2,), 256),
    "a branch is a list": (lambda: flat_map(upto), (4,), [0, 1, 2, 3]),
    "a stream is a branch": (lambda: flat_map(counting) | map(square), (4,), [0, 1, 4, 9]),
    "map, filter, collect": (
        lambda: flat_map(upto) | map(square, workers=3) | filter(is_odd) | collect() | stage(total),
        (6,),
        35,
    ),
    "ordered after a filter": (
        lambda: flat_map(upto) | map(slow_square, workers=5) | filter(is_odd) | ordered(4),
        (10,),
        [1, 9, 25, 49, 81],
    ),
    "batches": (lambda: flat_map(upto) | filter(is_odd) | collect(2) | map(total), (9,), [4, 12]),
    "nothing to fan out": (lambda: flat_map(upto) | map(square) | filter(is_odd), (0,), []),
    "nothing to collect": (lambda: flat_map(upto) | map(square) | collect() | stage(total), (0,), 0),
    "a group": (lambda: stage(square) | group(square, is_odd) | stage(pair_sum), (3,), 82),
    "a group over nothing": (lambda: flat_map(upto) | group(square, is_odd), (0,), []),
    "a lenient group": (lambda: group(square, fails, skip_errors=True), (3,), (9, None)),
    "a fork": (lambda: flat_map(upto) | forked(map(square), scaling(bind=bind(10))), (3,), [0, 0, 1, 10, 4, 20]),
    "after": (lambda: stage(square) | after(constant), (3,), "done"),
    "each gives nothing": (lambda: flat_map(upto) | each(note), (3,), []),
    "bound arguments": (lambda: stage(square) | scaling(bind=bind(10, plus=1)), (3,), 91),
    "by name": (lambda: stage(square) | scaling(bind=bind(10, 2), param_name="plus"), (3,), 29),
    "skipped items that take too long": (
        lambda: flat_map(upto) | map(slow_at_three, timeout=1.0, skip_errors=True),
        (5,),
        [0, 1, 2, 4],
    ),
    "after with an argument of its own": (lambda: stage(square) | after(square, bind=bind(5)), (3,), 25),
    "skipped errors": (lambda: flat_map(upto) | map(fails_at_three, skip_errors=True), (6,), [0, 1, 2, 4, 5]),
    "a pipeline within": (lambda: flat_map(upto) | map(stage(square) | stage(square)), (3,), [0, 1, 16]),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_run_gives_what_the_pipeline_gives_here(connect: Connect, name: str) -> None:
    make, args, expected = CASES[name]
    async with connect():
        assert await run(make(), *args) == expected
        here = make()(*args)
        assert await soon(here) == expected


async def test_a_fork_with_batches_of_its_own_ends(connect: Connect) -> None:
    async with connect():
        items = await run(flat_map(upto) | filter(is_odd) | forked(collect(2), map(square)) | collect(), 4)
        assert sorted(items, key=repr) == [1, 9, [1, 3]]


async def test_a_fan_out_holds_as_many_calls_in_flight_as_it_has_workers(connect: Connect) -> None:
    global highest
    highest = 0
    async with connect():
        assert await run(flat_map(upto) | map(slow_square, workers=5) | collect() | stage(total), 40) == 20540
    assert highest == 5


async def test_every_step_can_be_read_while_it_runs_and_after(connect: Connect) -> None:
    async with connect():
        handle = await soon((flat_map(upto) | filter(is_odd) | collect() | stage(total) | stage(never)).submit(6))
        assert handle.task_ids == tuple(f"{handle.id}.{number}" for number in range(5))
        for _ in range(2):
            assert await soon(handle.step(0)) == [0, 1, 2, 3, 4, 5]
            assert await soon(handle.step(1)) == [1, 3, 5]
            assert await soon(handle.step(2)) == [1, 3, 5]
            assert await soon(attach(handle.id).step(3)) == 9
        assert not await handle.done()
        await handle.cancel()


async def test_the_calls_of_a_run_are_children_of_it(connect: Connect) -> None:
    async with connect():
        handle = await soon(stage(parent).submit(1))
        assert await soon(handle) == (handle.id, handle.id)


FAILURES: dict[str, tuple[Callable[[], Pipeline[..., Any, Any]], type[Exception], str]] = {
    "an exception": (lambda: stage(square) | stage(fails) | stage(square), KeyError, "in stage 'fails', at item"),
    "an item's exception": (
        lambda: flat_map(upto) | map(fails_at_three) | collect(),
        KeyError,
        "in stage 'fails_at_three', at item (3,)",
    ),
    "a result that cannot be encoded": (lambda: stage(square) | stage(unencodable), EncodeError, "unencodable"),
    "a branch over what has no items": (lambda: stage(square) | flat_map(as_int), TypeError, "as_int"),
    "an item that takes too long": (
        lambda: flat_map(upto) | map(slow_at_three, timeout=1.0),
        TimeoutError,
        "'slow_at_three' took longer than its timeout of 1.0 s",
    ),
    "an abort among errors that are skipped": (
        lambda: flat_map(upto) | map(aborts_at_three, skip_errors=True) | collect(),
        AbortPipeline,
        "enough",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_that_of_the_run_and_of_every_later_step(connect: Connect, name: str) -> None:
    make, kind, text = FAILURES[name]
    async with connect(), keeping_pace() as pace:
        handle = await soon(make().submit(4))
        for attempt in (handle, handle.step(1), handle.step(len(handle.task_ids) - 1), attach(handle.id)):
            with pytest.raises(kind) as caught:
                await soon(attempt)
            assert text in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
        assert pace.seconds < 2 * PROMPT
        assert await soon(handle.step(0)) in (16, [0, 1, 2, 3])


async def test_an_atask_that_no_worker_knows_ends_the_run(connect: Connect) -> None:
    async with connect():

        @atask(name="not.here")
        async def elsewhere(x: int) -> int:
            return x

        pipeline = stage(square) | stage(elsewhere)
        atasks.get_router().registry.unregister("not.here")
        handle = await soon(pipeline.submit(4))
        for attempt in (handle, handle.step(1)):
            with pytest.raises(UnknownTask, match=r"not\.here"):
                await soon(attempt)
        assert await soon(handle.step(0)) == 16


async def test_an_argument_that_cannot_be_encoded_is_refused_at_once(connect: Connect) -> None:
    async with connect():
        with pytest.raises(EncodeError):
            await soon(stage(square).submit(item for item in ""))  # type: ignore[arg-type]


class Own(Stage):
    name = "own"

    async def run(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for item in stream:
            yield item


REFUSED: dict[str, tuple[Callable[[], Pipeline[..., Any, Any]], type[Exception], str]] = {
    "a local function": (lambda: stage(square) | stage(local), TypeError, "'local' is a local function"),
    "one in a group": (lambda: stage(square) | group(square, local), TypeError, "'local'"),
    "one in a fork": (lambda: stage(square) | forked(map(square), map(local)), TypeError, "'local'"),
    "one in a pipeline": (lambda: stage(square) | map(stage(local)), TypeError, "'local'"),
    "a hook": (
        lambda: stage(square) | map(square, on_done=print),
        TypeError,
        "'print' is on_done of stage",
    ),
    "a stage of one's own": (lambda: stage(square) | Own(), TypeError, "'own' is a stage of your own"),
    "element_index": (lambda: stage(wants_index), TypeError, "element_index"),
    "no stages": (Pipeline, ValueError, "without stages"),
    "several workers first": (lambda: map(square, workers=4), ValueError, "workers=4"),
    "collect first": (lambda: Pipeline(*collect().stages), ValueError, "collect"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_submitted_is_refused_by_name_before_anything_is_sent(name: str) -> None:
    make, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):  # and not NotConnected, which would come with the first thing sent
        await make().submit(1)


async def test_arguments_that_the_first_stage_does_not_take_are_refused() -> None:
    for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"y": 2})):
        with pytest.raises(TypeError, match="square"):
            await stage(square).submit(*args, **kwargs)


async def test_a_transport_that_keeps_nothing_says_so() -> None:
    class Minimal(Transport):
        async def connect(self) -> None: ...
        async def disconnect(self) -> None: ...

    before = atasks.get_transport()
    Minimal()
    try:
        with pytest.raises(NotSupported, match="Minimal keeps no results"):
            await stage(square).submit(1)
    finally:
        from atasks.namespaces import namespaces

        namespaces.register("default", transport=before)


async def test_handles_travel_as_strings_and_compare() -> None:
    handle: Handle[Any] = Handle("12ab-3.2", "shop")
    assert attach(handle.dumps()) == handle
    assert attach("12ab-3.2") == Handle("12ab-3.2") != handle
    assert attach("12ab-3.2").task_ids == ("12ab-3.2.0", "12ab-3.2.1")
    for bad, kind in (
        ("12AB", ValueError),
        ("12ab-3.0", ValueError),
        ("", ValueError),
        (handle.dumps()[:-5], PipelineError),
        ("atasks-run-9:{}", PipelineError),
        (handle.dumps().replace("12ab-3.2", "?"), PipelineError),
        (3, TypeError),
    ):
        with pytest.raises(kind):
            attach(bad)  # type: ignore[arg-type]


async def test_steps_count_from_nought(connect: Connect) -> None:
    async with connect():
        handle = await soon(stage(square).submit(2))
        for number, kind in ((1, IndexError), (-1, IndexError), (True, TypeError), ("0", TypeError)):
            with pytest.raises(kind):
                await handle.step(number)  # type: ignore[arg-type]
        assert await soon(handle.step(0)) == 4


async def test_a_run_that_expired_or_never_was_is_unknown(connect: Connect) -> None:
    async with connect(keep_runs=0.5):
        handle = await soon(stage(square).submit(2))
        assert await soon(handle) == 4
        await asyncio.sleep(2)  # longer than it is kept: asking sooner would keep it
        other = attach("12ab-3.2")
        for unknown in (handle, other):
            for attempt in (unknown, unknown.step(0), unknown.done(), unknown.cancel()):
                with pytest.raises(UnknownRun, match=unknown.id):
                    await soon(attempt)


async def test_a_run_keeps_its_record_while_it_lasts(connect: Connect, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with connect(keep_runs=0.5):
        handle = await soon((stage(opened) | stage(square)).submit(str(gate), 3))
        await asyncio.sleep(2)  # nobody but the run uses the record meanwhile
        gate.touch()
        assert await soon(handle) == 9


@pytest.mark.parametrize("connect", ["loopback", "local"], indirect=True)
async def test_a_run_keeps_its_record_while_its_process_is_held_up(connect: Connect, tmp_path: Path) -> None:
    """The process is held up, as on a busy machine: nobody can say meanwhile that the record is used."""
    gate = tmp_path / "gate"
    async with connect(keep_runs=0.5):
        handle = await soon((stage(opened) | stage(square)).submit(str(gate), 3))
        for _ in range(3):
            await asyncio.sleep(0.1)
            time.sleep(0.7)  # noqa: ASYNC251
        gate.touch()
        assert await soon(handle) == 9


@atask
async def opened(gate: str, x: int) -> int:
    while not Path(gate).exists():
        await asyncio.sleep(0.02)
    return x


async def test_who_stops_waiting_ends_nothing(connect: Connect) -> None:
    async with connect():
        handle = await soon((stage(square) | stage(never)).submit(2))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await handle
        assert not await handle.done()
        await handle.cancel()
