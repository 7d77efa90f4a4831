"""Each function of the module makes a pipeline, and awaiting that gives a value."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import atasks
from atasks import atask
from atasks.pipeline import (
    Pipeline,
    PipelineError,
    Run,
    after,
    bind,
    collect,
    drain,
    each,
    filter,
    flat_map,
    fork,
    from_iterable,
    group,
    map,
    merge,
    ordered,
    stage,
)
from tests.unit.pipeline.kinds import Kind, consume


def add_one(x: int) -> int:
    return x + 1


def double(x: int) -> int:
    return 2 * x


async def test_stages_one_behind_the_other(kind: Kind) -> None:
    both = kind.stage(add_one) | kind.stage(double)
    assert await both(1) == 4
    assert [item async for item in both(1)] == [4]
    assert await asyncio.to_thread(list, both(1)) == [4]


async def test_a_stage_is_also_a_decorator() -> None:
    @stage
    async def bare(x: int) -> int:
        return x + 1

    @stage(branch=True, inline=True)
    def optioned(x: int) -> Iterator[int]:
        yield from range(x)

    assert isinstance(bare, Pipeline)
    assert await (bare | optioned)(2) == [0, 1, 2]


async def test_the_arguments_of_a_call_reach_the_first_stage(kind: Kind) -> None:
    def scale(x: int, y: int, *, by: int = 1) -> int:
        return (x + y) * by

    assert await (kind.stage(scale) | kind.stage(add_one))(1, 2, by=3) == 10


async def test_after_ignores_its_input(kind: Kind, how: str) -> None:
    notified = after(kind.function(lambda *args: args), bind=bind("x"))
    assert await consume(range(2) | notified, how) == [("x",), ("x",)]
    assert await (stage(add_one) | notified)(1) == ("x",)


async def test_map_filter_flat_map_each(kind: Kind, how: str) -> None:
    function, options = kind.function, {"inline": True} if kind.name == "inline" else {}
    seen: list[int] = []
    assert await consume(range(4) | map(function(double), **options) | ordered(), how) == [0, 2, 4, 6]
    run = range(4) | filter(function(lambda x: x % 2), **options) | ordered()
    assert await consume(run, how) == [1, 3]
    run = range(3) | flat_map(kind.branch(lambda x: [x] * x), **options) | ordered()
    assert await consume(run, how) == [1, 2, 2]
    assert await consume(range(4) | each(function(seen.append), **options), how) == []
    assert sorted(seen) == [0, 1, 2, 3]


async def test_group_gives_a_tuple(kind: Kind, how: str) -> None:
    run = range(3) | group(kind.function(add_one), double, stage(add_one) | stage(double), after(lambda: "x"))
    assert sorted(await consume(run, how)) == [(1, 0, 2, "x"), (2, 2, 4, "x"), (3, 4, 6, "x")]


async def test_members_of_a_group_run_at_once() -> None:
    together = asyncio.Barrier(3)

    async def meet(x: int) -> int:
        await together.wait()
        return x

    assert await (range(2) | group(meet, meet, meet)) == [(0, 0, 0), (1, 1, 1)]


async def test_a_failing_member_cancels_the_others_unless_errors_are_skipped() -> None:
    cancelled: list[int] = []

    async def wait(x: int) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(x)
            raise
        return x

    async def fail(x: int) -> int:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        await group(wait, fail)(7)
    assert raised.value.__notes__ == ["in member 'fail' of a group", "in stage 'group', at item (0,)"]
    assert len(cancelled) == 1
    assert await group(add_one, fail, skip_errors=True)(7) == (8, None)


async def test_the_members_of_a_group_get_the_arguments_of_a_call() -> None:
    assert await group(operator.add, operator.mul, stage(operator.sub))(5, 3) == (8, 15, 2)


async def test_a_called_fork_gets_one_item() -> None:
    assert await fork(map(add_one), map(double))(5) == [6, 10]
    assert await (ordered() | map(add_one))(5) == 6
    with pytest.raises(TypeError, match="called with one item"):
        fork(map(add_one))(1, 2)


async def test_merge_interleaves(how: str) -> None:
    async def letters() -> AsyncIterator[str]:
        for letter in "abc":
            yield letter

    run = merge(range(3), letters(), range(2) | map(double)) | map(str)
    assert sorted(await consume(run, how)) == ["0", "0", "1", "2", "2", "a", "b", "c"]
    assert await consume(merge(), how) == []


async def test_drain_keeps_nothing(how: str) -> None:
    seen: list[int] = []
    assert await drain(range(5) | map(seen.append), from_iterable(range(3)) | each(seen.append)) is None
    assert len(seen) == 8


async def test_bind_unpack_and_param_name(kind: Kind) -> None:
    def power(base: int, exponent: int, modulo: int | None = None) -> int:
        return pow(base, exponent, modulo)

    def of(**options: Any) -> Pipeline[..., Any, Any]:
        return kind.stage(power, workers=1, **options)

    assert await ([2, 3] | of(bind=bind(exponent=2))) == [4, 9]
    assert await ([2, 3] | of(bind=bind(2))) == [4, 8]
    assert await ([2, 3] | of(bind=bind(2), param_name="exponent")) == [4, 8]
    assert await ([(2, 3), {"base": 5, "exponent": 2}] | of(unpack=True)) == [8, 25]
    assert await ([(3, 2)] | of(unpack=True, bind=bind(modulo=4))) == [1]
    assert await ([(2, 3)] | of(unpack=True, bind=bind(5))) == [1]


# -- what await gives


async def test_await_gives_the_value_where_there_is_one_and_a_list_otherwise() -> None:
    one = stage(add_one)
    assert await one(1) == 2
    assert await (one | ordered() | group(double) | after(str))(1) == ""
    assert await (one | filter(bool))(1) == [2]
    assert await (one | flat_map(range))(1) == [0, 1]
    assert await (one | flat_map(range) | map(double) | collect())(2) == [0, 2, 4]
    assert await (one | flat_map(range) | collect() | stage(sum))(2) == 3
    assert await (one | flat_map(range) | collect(2))(2) == [[0, 1], [2]]
    assert await (one | stage(add_one, skip_errors=True))(1) == [3]
    assert await ([1] | one) == [2]
    assert await ([1] | one | collect()) == [[2]]


async def test_map_over_the_elements_of_a_value(kind: Kind) -> None:
    p = kind.stage(range, branch=True) if kind.name != "atask" else stage(range, branch=True)
    assert await (p | kind.stage(double, workers=3) | collect())(4) == [0, 2, 4, 6]


async def test_one_gives_the_only_item() -> None:
    assert await ([1] | map(add_one)).one() == 2
    with pytest.raises(PipelineError, match="without items"):
        await ([] | map(add_one)).one()
    with pytest.raises(PipelineError, match="several items"):
        await ([1, 2] | map(add_one)).one()


async def test_nested_pipelines_give_their_result_or_their_stream(how: str) -> None:
    inner = flat_map(range) | map(double)
    assert await consume(range(3) | stage(inner) | ordered(), how) == [[], [0], [0, 2]]
    assert await consume(range(3) | stage(inner, branch=True) | ordered(), how) == [0, 0, 2]
    assert await (stage(add_one) | stage(stage(add_one) | stage(double)))(1) == 6


async def test_an_error_in_a_nested_pipeline_names_both_stages() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        await (range(3) | stage(map(lambda x: 1 // x)))
    inner, outer = raised.value.__notes__
    assert "<lambda>" in inner
    assert outer == "in stage 'pipeline (<lambda>)', at item (0,)"


async def test_remote_streams_are_branches_and_sources(namespace: str, how: str) -> None:
    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    async with atasks.connect("loopback:", namespace=namespace):
        assert await (stage(numbers, branch=True) | map(double))(3) == [0, 2, 4]
        assert await (range(4) | flat_map(numbers, workers=3) | ordered()) == [0, 0, 1, 0, 1, 2]
        assert await (numbers(3) | map(double)) == [0, 2, 4]


async def test_a_run_is_consumed_by_a_function() -> None:
    p = flat_map(range) | map(double)
    assert await asyncio.to_thread((p > list), 3) == [0, 2, 4]
    assert await asyncio.to_thread(p.consume(sum), 3) == 6
    assert await asyncio.to_thread(lambda: p(3) | list) == [0, 2, 4]

    async def total(run: Run[int, Any]) -> int:
        return sum([item async for item in run])

    assert await (p > total)(3) == 6
    assert await (p(3) | map(add_one)) == [1, 3, 5]


# -- context variables

seen: ContextVar[str] = ContextVar("seen", default="nothing")


def mark(x: int) -> tuple[int, str]:
    before = seen.get()
    seen.set(f"item {x}")
    return x, before


def marks(x: int) -> Iterator[str]:
    yield seen.get()
    seen.set(f"item {x}")
    yield seen.get()
    seen.set(f"child of {x}")


async def marks_here(x: int) -> AsyncIterator[str]:
    for item in marks(x):
        await asyncio.sleep(0)
        yield item


def set_up() -> None:
    seen.set("start")


async def set_up_here() -> None:
    set_up()


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"timeout": 60}])
@pytest.mark.parametrize("started", [False, True])
async def test_what_an_item_sets_others_do_not_see(how: str, options: dict[str, Any], started: bool) -> None:
    hook = {"on_start": set_up} if started else {}
    expected = "start" if started else "nothing"
    assert await consume(range(4) | map(mark, **options, **hook), how) == [(x, expected) for x in range(4)]
    branches = range(3) | flat_map(marks, **options, **hook)
    assert await consume(branches, how) == [y for x in range(3) for y in (expected, f"item {x}")]
    kept = range(3) | filter(lambda x: mark(x)[1] == expected, **options, **hook)
    assert await consume(kept, how) == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"skip_errors": True}])
@pytest.mark.parametrize("started", [False, True])
async def test_so_it_is_with_coroutines(how: str, options: dict[str, Any], started: bool) -> None:
    async def mark_here(x: int) -> tuple[int, str]:
        found = mark(x)
        await asyncio.sleep(0)
        assert seen.get() == f"item {x}"
        if x == 1 and options.get("skip_errors"):
            raise ValueError
        return found

    hook = {"on_start": set_up_here} if started else {}
    expected = "start" if started else "nothing"
    wanted = [(x, expected) for x in range(5) if x != 1 or "skip_errors" not in options]
    assert await consume(range(5) | map(mark_here, **options, **hook), how) == wanted
    branches = range(3) | flat_map(marks_here, **options, **hook)
    assert await consume(branches, how) == [y for x in range(3) for y in (expected, f"item {x}")]
    assert seen.get() == "nothing"


class Incomparable:
    """Raises where it is compared, as an array does where truth is asked of what comes of that."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


kept_by_caller: ContextVar[Incomparable] = ContextVar("kept_by_caller")


async def test_a_variable_may_have_a_value_that_cannot_be_compared() -> None:
    first = Incomparable()
    kept_by_caller.set(first)

    async def replace_here(x: int) -> bool:
        before = kept_by_caller.get()
        kept_by_caller.set(Incomparable())
        return before is first

    async def replacements_here(x: int) -> AsyncIterator[bool]:
        yield await replace_here(x)

    assert await (range(3) | map(replace_here)) == [True] * 3
    assert await (range(3) | flat_map(replacements_here)) == [True] * 3


async def test_so_it_is_in_processes() -> None:
    assert await (range(2) | map(mark, multiprocess=True, on_start=set_up)) == [(0, "start"), (1, "start")]
    branches = range(2) | flat_map(marks, multiprocess=True)
    assert await branches == [y for x in range(2) for y in ("nothing", f"item {x}")]
