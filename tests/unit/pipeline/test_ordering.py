"""Rule 5: items keep their lineage, and `ordered()` and `collect()` go by it without waiting for the end."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import atasks
from atasks import atask
from atasks.errors import PipelineError
from atasks.pipeline import collect, each, filter, flat_map, fork, from_iterable, group, map, merge, ordered, stage
from atasks.pipeline.flow.channel import END, GAP
from atasks.pipeline.flow.ordering import Sequencer, Window
from tests.unit.pipeline.kinds import Kind, consume


async def shuffled(x: Any) -> Any:
    """Ends after those that began later, often."""
    for _ in range(random.randrange(20)):
        await asyncio.sleep(0)
    return x


async def test_ordered_is_in_order(kind: Kind, how: str) -> None:
    run = range(200) | map(shuffled, workers=9) | kind.stage(lambda x: x, workers=4) | ordered()
    assert await consume(run, how) == list(range(200))


async def test_ordered_streams_through_filter_and_flat_map(kind: Kind, how: str) -> None:
    run = (
        range(60)
        | map(shuffled, workers=9)
        | filter(lambda x: x % 3, workers=2)
        | kind.stage(lambda x: [x] * (x % 4), branch=True, workers=3)
        | map(shuffled, workers=9)
        | filter(lambda x: x % 2 == 0)
        | ordered()
    )
    expected = [x for x in range(60) if x % 3 for _ in range(x % 4) if x % 2 == 0]
    assert await consume(run, how) == expected


async def test_ordered_streams_an_infinite_source() -> None:
    run = itertools.count() | map(shuffled, workers=9) | filter(lambda x: x % 2) | ordered(16)
    items = aiter(run)
    assert [await anext(items) for _ in range(100)] == list(range(1, 200, 2))
    await items.aclose()


async def test_ordered_streams_an_infinite_branch() -> None:
    run = stage(itertools.count, branch=True) | map(shuffled, workers=9) | ordered(16)
    items = aiter(run(5))
    assert [await anext(items) for _ in range(100)] == list(range(5, 105))
    await items.aclose()


async def test_the_window_bounds_what_is_admitted() -> None:
    admitted: list[int] = []
    gate = asyncio.Event()

    async def first_is_slow(x: int) -> int:
        admitted.append(x)
        if x == 0:
            await gate.wait()
        return x

    items = aiter(itertools.count() | map(first_is_slow, workers=5) | ordered(20))
    taking = asyncio.ensure_future(anext(items))
    for _ in range(300):
        await asyncio.sleep(0)
    assert sorted(admitted) == list(range(20))
    gate.set()
    assert await taking == 0
    assert [await anext(items) for _ in range(50)] == list(range(1, 51))
    await items.aclose()


async def test_a_small_window_does_not_deadlock_behind_a_branch() -> None:
    async def many(x: int) -> AsyncIterator[int]:
        for _ in range(30):
            yield await shuffled(x)

    run = range(20) | map(shuffled, workers=9) | flat_map(many) | map(shuffled, workers=7) | ordered(2)
    async with asyncio.timeout(60):
        assert await consume(run, "async for") == [x for x in range(20) for _ in range(30)]


async def test_await_and_collect_give_lineage_order(kind: Kind) -> None:
    run = range(100) | map(shuffled, workers=9) | flat_map(lambda x: [x, -x]) | kind.stage(lambda x: x, workers=5)
    expected = [y for x in range(100) for y in (x, -x)]
    assert await run == expected
    again = range(100) | map(shuffled, workers=9) | flat_map(lambda x: [x, -x]) | collect()
    assert await again.one() == expected


async def test_iteration_gives_items_as_they_complete() -> None:
    async def slow_zero(x: int) -> int:
        if x == 0:
            await later.wait()
        return x

    later = asyncio.Event()
    items = aiter(range(3) | map(slow_zero, workers=3))
    first = [await anext(items), await anext(items)]
    later.set()
    assert sorted(first) == [1, 2]
    assert await anext(items) == 0
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_with_one_worker_the_order_is_that_of_the_input(kind: Kind, how: str) -> None:
    assert await consume(range(50) | kind.stage(lambda x: x, workers=1), how) == list(range(50))


async def test_indexed_gives_the_lineage(how: str) -> None:
    run = (range(3) | flat_map(lambda x: [x] * x)).indexed()
    assert await consume(run, how) == [((1, 0), 1), ((2, 0), 2), ((2, 1), 2)]


async def test_collect_in_batches_is_in_order(how: str) -> None:
    run = range(11) | map(shuffled, workers=5) | filter(lambda x: x != 4) | collect(4)
    assert await consume(run, how) == [[0, 1, 2, 3], [5, 6, 7, 8], [9, 10]]


async def test_fork_keeps_the_order_of_its_pipelines(how: str) -> None:
    double = map(shuffled, workers=4) | map(lambda x: 2 * x)
    run = range(30) | fork(double, filter(lambda x: x % 2) | map(shuffled, workers=4)) | ordered()
    assert await consume(run, how) == [y for x in range(30) for y in ([2 * x, x] if x % 2 else [2 * x])]


async def test_an_order_within_a_fork(how: str) -> None:
    run = range(30) | map(shuffled, workers=9) | fork(ordered(4) | collect(10), each(str))
    assert await consume(run, how) == [list(range(n, n + 10)) for n in (0, 10, 20)]


async def test_a_fork_of_unlike_pipelines_is_in_the_order_of_arrival(how: str) -> None:
    run = range(3) | fork(map(str), flat_map(lambda x: [x] * x)) | ordered()
    assert sorted(await consume(run, how), key=repr) == ["0", "1", "2", 1, 2, 2]


async def test_order_starts_anew_behind_a_join(how: str) -> None:
    def pairs(items: Iterator[int]) -> Iterator[tuple[int, int]]:
        yield from zip(items, items, strict=True)

    run = range(20) | map(shuffled, workers=9) | ordered() | stage(pairs, join=True, branch=True) | ordered()
    assert await consume(run, how) == list(zip(range(0, 20, 2), range(1, 20, 2), strict=True))


async def test_a_merge_can_be_put_in_order_of_arrival(how: str) -> None:
    assert sorted(await consume(merge(range(5), range(5)) | map(shuffled, workers=3) | ordered(), how)) == [
        n for n in range(5) for _ in range(2)
    ]


async def test_groups_and_errors_leave_no_hole(how: str) -> None:
    def odd(x: int) -> int:
        if x % 2 == 0:
            raise ValueError
        return x

    run = from_iterable(range(10)) | map(odd, skip_errors=True, workers=3) | group(shuffled, str) | ordered()
    assert await consume(run, how) == [(x, str(x)) for x in range(1, 10, 2)]


async def same(x: Any) -> Any:
    return x


async def twice(x: Any) -> list[Any]:
    return [x, x]


@pytest.mark.parametrize("behind", [lambda: ordered(1), lambda: ordered(), lambda: collect(3) | flat_map(same)])
async def test_what_is_dropped_before_a_fork_leaves_no_hole(how: str, behind: Any) -> None:
    async def some(x: int) -> list[int]:
        if x % 5 == 0:
            raise ValueError
        return [x] * (x % 3)

    ways = fork(map(same), filter(lambda x: x % 2))
    run = (
        range(2000)
        | filter(lambda x: x % 7)
        | flat_map(some, skip_errors=True)
        | ways
        | fork(map(same))
        | behind()
    )
    expected = [x for x in range(2000) if x % 7 and x % 5 for _ in range(x % 3) for _ in range(1 + x % 2)]
    async with asyncio.timeout(60):
        assert await consume(run, how) == expected


@pytest.mark.parametrize("before", [0, 2])
async def test_forks_make_few_marks_of_one(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """A gap of one fork is one gap behind all later forks. Each of them adds one mark for each item."""
    ways, forks, pushed = 10, 4, []
    push = Sequencer.push
    monkeypatch.setattr(Sequencer, "push", lambda self, token: pushed.append(token) or push(self, token))
    dropping = [filter(lambda x: False, inline=True) for _ in range(ways - 1)]
    run: Any = range(1 + before) | filter(lambda x: x >= before, inline=True)
    for _ in range(forks):
        run = run | fork(map(same), *dropping)
    assert [x async for x in run | ordered()] == [before]
    assert len(pushed) == before + 1 + forks * ways


@pytest.mark.parametrize("behind", [lambda: ordered(1), lambda: ordered(3), lambda: collect(1) | flat_map(same)])
async def test_branches_within_a_fork_keep_their_order(how: str, behind: Any) -> None:
    inner = flat_map(twice) | fork(flat_map(twice, workers=3), flat_map(twice) | ordered(1))
    run = range(50) | map(shuffled, workers=4) | fork(inner, flat_map(twice) | flat_map(twice) | fork(map(same)))
    async with asyncio.timeout(60):
        # Ways that branch as often as each other do not number anew.
        assert await consume(range(50) | fork(flat_map(twice), flat_map(twice)) | behind(), how) == [
            x for x in range(50) for _ in range(4)
        ]
        assert sorted(await consume(run | behind(), how)) == [x for x in range(50) for _ in range(12)]


async def test_a_pipeline_of_a_fork_that_ends_early_does_not_hold_the_others_up(how: str) -> None:
    async def first(items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item
            return

    async with asyncio.timeout(60):
        run = range(50) | fork(ordered(1) | stage(first, join=True, branch=True), map(str))
        assert sorted(await consume(run, how), key=repr) == sorted([0, *map_str(50)], key=repr)


def map_str(count: int) -> list[str]:
    return [str(number) for number in range(count)]


async def test_a_worker_of_a_join_that_is_skipped_leaves_no_hole(how: str) -> None:
    async def fails_once(items: AsyncIterator[int]) -> int:
        if not begun:
            begun.append(True)
            raise ValueError
        return sum([item async for item in items])

    begun: list[bool] = []
    run = range(5) | stage(fails_once, join=True, workers=3, skip_errors=True) | ordered()
    assert sum(await consume(run, how)) == 10


async def test_the_window_bounds_what_is_numbered_anew() -> None:
    """Behind a collect, and behind a fork of unlike pipelines."""
    for before in (collect(1), fork(map(same), flat_map(lambda x: [x], inline=True))):
        calls: list[Any] = []
        gate = asyncio.Event()

        async def first_is_slow(x: Any, calls: list[Any] = calls, gate: asyncio.Event = gate) -> Any:
            calls.append(x)
            if len(calls) == 1:
                await gate.wait()
            return x

        items = aiter(itertools.count() | before | map(first_is_slow, workers=50) | ordered(5))
        taking = asyncio.ensure_future(anext(items))
        for _ in range(300):
            await asyncio.sleep(0)
        assert len(calls) == 5
        gate.set()
        await taking
        await items.aclose()


async def test_an_order_that_never_came_is_an_error_and_no_silence() -> None:
    sequencer = Sequencer()
    assert not list(sequencer.push(((1,), "x")))
    with pytest.raises(PipelineError, match=r"item \(0,\) never came"):
        sequencer.end()


def test_the_sequencer_gives_tokens_back_in_order() -> None:
    tokens: list[Any] = []
    for root in range(6):
        if root == 2:
            tokens.append(((root,), GAP))
            continue
        for child in range(root):
            tokens += [((root, child, 0), f"{root}.{child}"), ((root, child, 1), END)]
        tokens.append(((root, root), END))
    expected = [value for _, value in tokens if isinstance(value, str)]
    for seed in range(50):
        random.Random(seed).shuffle(tokens)
        sequencer = Sequencer()
        assert [v for token in tokens for _, v in sequencer.push(token) if isinstance(v, str)] == expected
        assert sequencer.expected == (6,)


def test_a_window_admits_the_item_whose_turn_it_is() -> None:
    window = Window(2)
    assert window.admits((0,))
    assert window.admits((1,))
    assert not window.admits((2,))
    assert window.admits((0, 1))
    assert not window.admits((0, 2)), "children of the item whose turn it is"
    assert window.admits((1, 7)), "those of later ones are not held back"
    assert not list(window.sequencer.push(((0, 0), GAP)))[1:]
    assert window.sequencer.expected == (0, 1)
    assert window.admits((0, 2))


async def test_a_branch_that_does_not_end_is_refused_where_it_waits_for_its_turn() -> None:
    async def wait(item: int) -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield item

    async def endless(item: int) -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0)
            yield item

    with pytest.raises(PipelineError, match="a branch that does not end cannot be put in order"):
        async for _ in range(3) | fork(flat_map(wait), flat_map(endless)) | ordered(3):
            pass


async def test_a_branch_that_ends_waits_for_its_turn_however_long_it_is() -> None:
    go = asyncio.Event()

    async def wait(item: int) -> AsyncIterator[int]:
        await go.wait()
        yield item

    async def long(item: int) -> AsyncIterator[int]:
        for number in range(1, 2500):
            yield number
        go.set()

    run = [0] | fork(flat_map(wait), flat_map(long)) | ordered(3)
    assert [number async for number in run] == list(range(2500))


# -- lists that do not wait for ever


async def test_a_list_goes_on_when_its_time_is_over() -> None:
    handed = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        yield 2
        await handed.wait()  # the list of the two is out, before there are more items
        for n in range(3, 8):
            yield n

    lists = []
    async for items in source() | collect(3, seconds=0.05):
        lists.append(items)
        handed.set()
    assert [n for items in lists for n in items] == [1, 2, 3, 4, 5, 6, 7]
    assert lists[0] == [1, 2]
    assert max(len(items) for items in lists) == 3


async def test_a_run_whose_lists_wait_can_be_left_and_fail() -> None:
    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async for items in endless() | collect(3, seconds=0.01):
        assert items == [1]
        break

    async def failing() -> AsyncIterator[int]:
        yield 1
        raise KeyError("source")

    with pytest.raises(KeyError):
        await (failing() | collect(3, seconds=60.0))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"seconds": 1.0}, ValueError), ({"n": 2, "seconds": 0}, ValueError), ({"n": 2, "seconds": "1"}, TypeError)],
)
def test_seconds_that_make_no_sense(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds"):
        collect(**arguments)


async def test_lists_by_time_are_not_for_runs_on_the_workers() -> None:
    @atask(name="ordering-remote", namespace="ordering")
    async def remote(n: int) -> int:
        return n

    async with atasks.connect("loopback:", namespace="ordering"):
        with pytest.raises(TypeError, match="seconds"):
            await (flat_map(remote) | collect(2, seconds=1.0)).submit(1)
