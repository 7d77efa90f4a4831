"""Threads take the items that are at hand by themselves, and no item waits for another one because of that."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from atasks.pipeline import filter, map, ordered
from atasks.pipeline.flow.runners import ThreadRunner
from atasks.testing import until

LONG = 60


class Neither:
    """Has no truth value."""

    def __bool__(self) -> bool:
        raise ValueError("neither")


class Awaitable:
    """Must not be awaited."""

    def __await__(self) -> Any:
        raise AssertionError("it was awaited")


def neither(x: int) -> Any:
    return Neither() if x % 50 == 0 else x % 3


def later_true(x: object) -> Any:
    async def true() -> bool:
        return True

    return true()


async def test_items_that_wait_cost_no_hop_each(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    hops = 0
    call_soon = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal hops
        hops += 1
        return call_soon(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    assert await (range(2000) | map(abs) | map(abs)) == list(range(2000))
    assert hops < 2000


async def test_items_that_wait_cost_the_event_loop_nothing_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread puts their results itself."""
    calls = 0
    call = ThreadRunner.call

    async def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await call(*args)

    monkeypatch.setattr(ThreadRunner, "call", counted)
    assert await (range(2000) | map(abs) | map(abs)) == list(range(2000))
    assert calls < 1000


@pytest.mark.parametrize("options", [{}, {"workers": 3}, {"multiprocess": True}])
async def test_a_result_that_is_neither_true_nor_false_costs_its_own_item(options: Any) -> None:
    dropped = []
    run = range(300) | filter(neither, skip_errors=True, on_error=lambda x, error: dropped.append(x), **options)
    found = [item async for item in run | ordered()]
    assert found == [x for x in range(300) if x % 3 and x % 50]
    assert dropped == [x for x in range(300) if x % 50 == 0] or options.get("workers", 1) > 1
    assert len(dropped) == 6


async def test_all_calls_are_counted_whoever_puts_their_results() -> None:
    states: list[Any] = []
    run = range(500) | map(abs, workers=3) | filter(bool)
    await run.options(progress=states.append)
    assert [(state.name, state.done) for state in states[-1]] == [("abs", 500), ("bool", 500)]


async def test_an_awaitable_that_a_filter_lets_pass_is_not_awaited() -> None:
    items = [Awaitable() for _ in range(100)]
    assert await (items | filter(bool)) == items
    assert await (items | filter(later_true)) == items


async def test_a_result_does_not_wait_for_the_next_item() -> None:
    gate = threading.Event()

    def wait(x: int) -> int:
        if x == 3:
            gate.wait(LONG)
        return x

    run = aiter(range(5) | map(wait))
    try:
        assert [await anext(run) for _ in range(3)] == [0, 1, 2]
    finally:
        gate.set()
    assert [item async for item in run] == [3, 4]


async def test_an_idle_worker_takes_what_waits_behind_a_slow_item() -> None:
    gate = threading.Event()

    def wait(x: int) -> int:
        if x == 0:
            gate.wait(LONG)
        return x

    run = aiter(range(50) | map(wait, workers=2))
    try:
        assert [await anext(run) for _ in range(49)] == list(range(1, 50))
    finally:
        gate.set()
    assert [item async for item in run] == [0]


async def test_nothing_is_begun_behind_an_error() -> None:
    begun = []

    def fail(x: int) -> int:
        begun.append(x)
        if x == 5:
            raise ValueError(x)
        return x

    with pytest.raises(ValueError, match="5"):
        await (range(100) | map(fail))
    assert begun == list(range(6))


async def test_nothing_is_begun_after_the_end() -> None:
    begun = []
    gate = threading.Event()

    def wait(x: int) -> int:
        begun.append(x)
        if x == 5:
            gate.wait(LONG)
        return x

    run: Any = aiter(range(100) | map(wait))
    assert await anext(run) == 0
    await until(lambda: len(begun) == 6)
    await run.aclose()
    gate.set()
    await until(lambda: not any(thread.name == "atasks-wait-0" for thread in threading.enumerate()))
    assert begun == list(range(6))


@pytest.mark.parametrize("workers", [1, 3])
async def test_what_is_to_be_awaited_is_awaited_before_the_next_call(workers: int) -> None:
    running = most = 0

    async def later(x: int) -> int:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0)
        running -= 1
        return x

    def some(x: int) -> Any:
        return later(x) if x % 3 == 0 else x

    assert await (range(60) | map(some, workers=workers) | ordered()) == list(range(60))
    assert most <= workers


class Item:
    """Can be referred to weakly."""


def one(item: Item) -> int:
    return 1


@pytest.mark.parametrize("options", [{}, {"multiprocess": True}])
async def test_a_run_that_has_ended_holds_no_item(options: Any) -> None:
    items: list[weakref.ref[Item]] = []

    def made() -> Iterator[Item]:
        for _ in range(5):
            item = Item()
            items.append(weakref.ref(item))
            yield item
            del item

    run = made() | map(one, workers=1, **options)
    assert await run == [1] * 5
    gc.collect()
    assert [item for item in items if item() is not None] == []


number: ContextVar[int] = ContextVar("number", default=-1)
seen: list[int] = []


class Truth:
    """Sees the context of its item, and changes it."""

    def __bool__(self) -> bool:
        seen.append(number.get())
        number.set(100)
        return True


def truth(x: int) -> Truth:
    number.set(number.get() + x + 1)
    return Truth()


@pytest.mark.parametrize(("options", "expected"), [({}, [0, 1, 2]), ({"multiprocess": True}, [-1, -1, -1])])
async def test_the_truth_of_a_result_belongs_to_its_item(options: Any, expected: list[int]) -> None:
    """A process does not share its context: there it is that of the run."""
    seen.clear()
    assert await (range(3) | filter(truth, workers=1, **options)) == [0, 1, 2]
    assert seen == expected


class Proxy:
    """Seems to be of the class of what it stands for."""

    def __init__(self, target: object) -> None:
        self._target = target

    @property
    def __class__(self) -> Any:
        return type(self._target)


@pytest.mark.parametrize("numbers", [0, 2])
async def test_a_proxy_is_what_it_stands_for(numbers: int) -> None:
    def proxy(x: int) -> Proxy:
        return Proxy(x if x < numbers else Awaitable())

    with pytest.raises(TypeError, match=r"'await' expression|can't be awaited"):
        await (range(3) | map(proxy, workers=1))
