"""Rule 7: hooks run once per worker, and what they return and who works is passed by name."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from typing import Any

import pytest

from atasks.pipeline import WorkerInfo, bind, flat_map, group, map, stage
from atasks.testing import until
from tests.unit.pipeline.kinds import Kind, consume


class Log:
    """A record of what hooks did."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.done: list[int] = []

    def start(self, worker_info: WorkerInfo) -> dict[str, Any]:
        self.started.append(worker_info.index)
        return {"session": f"session {worker_info.index}"}

    def end(self, worker_info: WorkerInfo, session: str) -> None:
        assert session == f"session {worker_info.index}"
        self.done.append(worker_info.index)


async def test_hooks_run_once_per_worker(kind: Kind, how: str) -> None:
    log = Log()
    step = kind.stage(lambda x: x, workers=3, on_start=log.start, on_done=log.end)
    assert sorted(await consume(range(20) | step, how)) == list(range(20))
    assert sorted(log.started) == sorted(log.done) == [0, 1, 2]


async def test_hooks_may_be_coroutine_functions() -> None:
    log = Log()

    async def start(worker_info: WorkerInfo) -> dict[str, Any]:
        await asyncio.sleep(0)
        return log.start(worker_info)

    async def end(worker_info: WorkerInfo, session: str) -> None:
        await asyncio.sleep(0)
        log.end(worker_info, session)

    for inline in (False, True):
        assert len(await (range(3) | map(str, inline=inline, on_start=start, on_done=end))) == 3
    assert log.started == log.done == [0, 0]


async def test_hooks_of_a_thread_run_in_it() -> None:
    names = set()

    def note(*args: Any) -> None:
        names.add(threading.current_thread().name)

    await (range(3) | map(note, on_start=lambda: note(), on_done=lambda: note()))
    assert names == {"atasks-note-0"}


async def test_on_done_runs_after_an_error(kind: Kind, how: str) -> None:
    log = Log()

    def fail(x: int) -> int:
        if x == 5:
            raise ZeroDivisionError
        return x

    with pytest.raises(ZeroDivisionError):
        await consume(range(50) | kind.stage(fail, workers=3, on_start=log.start, on_done=log.end), how)
    await until(lambda: sorted(log.done) == sorted(log.started))
    assert len(set(log.done)) == len(log.done)


async def test_on_done_follows_an_on_start_that_outlasted_its_run() -> None:
    second, go_on = threading.Event(), threading.Event()
    started: list[int] = []
    done: list[int] = []

    def start() -> None:
        started.append(1)
        if len(started) == 2:
            second.set()
            go_on.wait(60)

    def fail(x: int) -> int:
        second.wait(60)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await (range(50) | map(fail, workers=2, on_start=start, on_done=lambda: done.append(1)))
    assert len(started) == 2
    go_on.set()
    await until(lambda: len(done) == 2)


async def test_on_done_runs_when_the_run_is_closed(kind: Kind) -> None:
    log = Log()
    items = aiter(itertools.count() | kind.stage(lambda x: x, workers=3, on_start=log.start, on_done=log.end))
    await anext(items)
    await items.aclose()
    await until(lambda: sorted(log.done) == sorted(log.started))
    assert log.started


async def test_on_done_of_a_thread_that_is_abandoned_runs_when_it_returns() -> None:
    log = Log()
    gate, running = threading.Event(), threading.Event()

    def block(x: int) -> None:
        running.set()
        gate.wait(60)
        assert log.done == []

    task = asyncio.ensure_future(consume(range(3) | map(block, on_start=log.start, on_done=log.end), "await"))
    await until(running.is_set)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert log.done == []
    gate.set()
    await until(lambda: log.done == [0])


async def test_a_failing_on_start_fails_the_run_and_is_not_undone() -> None:
    log = Log()

    def start() -> None:
        raise ZeroDivisionError

    for inline in (False, True):
        step = map(str, inline=inline, on_start=start, on_done=log.end)
        with pytest.raises(ZeroDivisionError) as raised:
            await (range(3) | step)
        assert raised.value.__notes__ == ["in stage 'str'"]
    assert log.done == []


async def test_a_failing_on_done_fails_the_run(how: str) -> None:
    def end() -> None:
        raise ZeroDivisionError

    for step in (map(int, on_done=end), map(int, inline=True, on_done=end)):
        with pytest.raises(ZeroDivisionError):
            await consume(range(3) | step, how)


@pytest.mark.parametrize("outlasting", ["the function", "on_start"])
async def test_a_failing_on_done_is_reported_where_a_thread_outlasts_its_run(outlasting: str) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(f"{context['message']}: {context['exception']!r}")
    )
    gate, running = threading.Event(), threading.Event()

    def block(*args: Any) -> None:
        running.set()
        gate.wait(60)

    def end() -> None:
        raise ZeroDivisionError

    hooks = {"on_done": end} if outlasting == "the function" else {"on_start": lambda: block(), "on_done": end}
    task = asyncio.ensure_future(consume(range(3) | map(block, **hooks), "await"))
    await until(running.is_set)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert reported == []
    gate.set()
    await until(lambda: reported == ["on_done of stage 'block' raised: ZeroDivisionError()"])


async def test_on_start_returns_a_dict_or_none() -> None:
    with pytest.raises(TypeError, match="on_start of stage 'str' returns a dict of arguments or None, not int"):
        await (range(3) | map(str, on_start=lambda: 3))


async def test_names_are_injected(kind: Kind) -> None:
    def tell(x: int, element_index: tuple[int, ...], worker_info: WorkerInfo, factor: int = 0) -> Any:
        return x * factor, element_index, worker_info.index, worker_info.stage

    function: Any = tell
    if kind.name in ("coroutine", "atask"):

        async def atell(x: int, element_index: Any, worker_info: WorkerInfo, factor: int = 0) -> Any:
            return tell(x, element_index, worker_info, factor)

        function = atell
        if kind.name == "atask":
            from atasks import atask

            function = atask(atell, namespace=kind.namespace)
    options: dict[str, Any] = {"inline": True} if kind.name == "inline" else {}
    run = [5, 6] | stage(function, workers=1, on_start=lambda: {"factor": 2, "unused": 1}, **options)
    name = function.__name__
    assert await run == [(10, (0,), 0, name), (12, (1,), 0, name)]


async def test_the_index_of_a_child_has_two_numbers() -> None:
    def index(x: int, element_index: tuple[int, ...]) -> tuple[int, ...]:
        return element_index

    assert await (range(3) | flat_map(lambda x: [x] * x) | map(index)) == [(1, 0), (2, 0), (2, 1)]


async def test_bound_arguments_and_the_item_itself_are_not_replaced() -> None:
    def first(worker_info: Any) -> Any:
        return worker_info

    def second(x: Any, worker_info: Any) -> Any:
        return worker_info

    assert await (["item"] | map(first)) == ["item"]
    assert await (["item"] | map(second, bind=bind(worker_info="bound"))) == ["bound"]
    assert await (["item"] | map(functools.partial(second, "bound"))) == ["item"]


async def test_a_builtin_without_a_signature_gets_the_item_alone() -> None:
    assert await (["1"] | map(int, on_start=lambda: {"base": 2})) == [1]


async def test_members_of_a_group_have_their_hooks() -> None:
    log = Log()
    member = stage(str, on_start=log.start, on_done=log.end)
    assert await (range(2) | group(member, len, skip_errors=True)) == [("0", None), ("1", None)]
    assert log.started == log.done == [0]


def test_on_done_of_a_thread_runs_although_its_loop_has_closed() -> None:
    log = Log()
    gate, running = threading.Event(), threading.Event()

    def block(x: int) -> None:
        running.set()
        gate.wait(60)

    async def leave() -> None:
        task = asyncio.ensure_future(consume(range(3) | map(block, on_start=log.start, on_done=log.end), "await"))
        await until(running.is_set)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(leave())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "atasks-block-0"]
    assert log.done == []
    gate.set()
    thread.join(60)
    assert log.done == [0]
