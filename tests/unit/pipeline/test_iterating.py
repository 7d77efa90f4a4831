"""Rules 1 and 8, sources, and progress: how a run is consumed and watched."""

# Private attributes: `Lines._next`: when the next line is due is seen nowhere else.

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import atasks
from atasks import CallConnectionLost, atask
from atasks.errors import PipelineError
from atasks.pipeline import (
    StageProgress,
    collect,
    drain,
    filter,
    fork,
    from_iterable,
    map,
    merge,
    ordered,
    progress,
    stage,
)
from atasks.testing import until
from tests.unit.pipeline.kinds import consume


def add_one(x: int) -> int:
    return x + 1


async def add_one_here(x: int) -> int:
    return x + 1


# -- `for`


async def test_for_in_a_thread_with_a_running_loop_raises_at_once() -> None:
    run = range(3) | map(add_one)
    with pytest.raises(RuntimeError, match="an event loop runs in this thread: write `async for`"):
        iter(run)
    assert await run == [1, 2, 3], "and it is not used up"


def test_for_works_where_no_loop_runs() -> None:
    assert list(range(5) | map(add_one_here) | map(add_one, workers=3) | ordered()) == [1 + n for n in range(1, 6)]
    assert sum(stage(range, branch=True)(4)) == 6
    for item in itertools.count() | map(add_one_here):
        assert item == 1
        break


def test_the_background_loop_ends_with_the_last_run() -> None:
    first, second = (iter(range(9) | map(add_one)) for _ in range(2))
    assert (next(first), next(second)) == (1, 1)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "atasks-sync"]
    assert list(first) == list(range(2, 10))
    assert thread.is_alive()
    second.close()
    thread.join(60)
    assert not thread.is_alive()


def test_a_run_that_outlives_its_connection_does_not_end_as_if_it_were_complete(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(x: int) -> int:
        return 2 * x

    with atasks.connect_sync("loopback:", namespace=namespace):
        items = iter(itertools.count() | map(double, workers=2))
        assert [next(items) for _ in range(3)] == [0, 2, 4]
    # What ends first: the event loop that the run is on, a call that was under way, or the next call.
    with pytest.raises((PipelineError, CallConnectionLost, atasks.NotConnected)):
        for _ in range(10_000):
            next(items)


def test_several_threads_may_iterate_at_once() -> None:
    results: list[list[int]] = []

    def work() -> None:
        results.append(list(range(50) | map(add_one_here, workers=3) | ordered()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(range(1, 51))] * 4


def test_remote_stages_use_the_connection_for_synchronous_callers(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(x: int) -> int:
        return 2 * x

    with pytest.raises(atasks.NotConnected):
        list([1] | map(double))
    with atasks.connect_sync("loopback:", namespace=namespace):
        assert list([1, 2] | map(double) | ordered()) == [2, 4]


async def test_a_blocking_atask_may_iterate_a_run(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(x: int) -> int:
        return 2 * x

    @atask(namespace=namespace, executor="thread")
    def total(n: int) -> int:
        return sum(range(n) | map(double))

    async with atasks.connect("loopback:", namespace=namespace):
        assert await total(5) == 20


async def test_a_served_call_may_run_a_pipeline_of_its_own_kind(namespace: str) -> None:
    @atask(namespace=namespace)
    async def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(await ([depth - 1] * 2 | map(tree)))

    async with atasks.serve("loopback:", namespace=namespace, concurrency=1):
        assert await tree(5) == 32


def test_a_ctrl_c_ends_the_loop(script: Any) -> None:
    output = script(
        """
        import itertools, os, signal, threading
        from atasks.pipeline import map

        def work(x):
            if x == 3:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(0.2)
            return x

        try:
            for _ in itertools.count() | map(work, throttle=1):
                pass
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert output == "interrupted"


def test_a_ctrl_c_while_a_loop_begins_lets_nothing_run_on(script: Any) -> None:
    output = script(
        """
        import asyncio, itertools, os, signal, sys, threading, traceback
        import atasks
        from atasks.pipeline import map

        main, busy, interrupted, called = threading.get_ident(), threading.Event(), threading.Event(), []

        def keep_the_loop_busy():
            busy.set()
            while "in start" not in "".join(traceback.format_stack(sys._current_frames()[main])):
                pass
            os.kill(os.getpid(), signal.SIGINT)
            interrupted.wait(30)

        @atasks.atask
        async def begin():
            asyncio.get_running_loop().call_later(0.01, keep_the_loop_busy)

        with atasks.connect_sync("loopback:"):
            begin.sync()
            busy.wait(30)
            try:
                for _ in itertools.count() | map(called.append):
                    pass
            except KeyboardInterrupt:
                print("interrupted")
            interrupted.set()

            @atasks.atask
            async def tasks():
                while [task for task in asyncio.all_tasks() if "Crew" in repr(task)]:
                    await asyncio.sleep(0.01)
                return "ended"

            print(tasks.sync(), called)
        """
    )
    assert output == "interrupted\nended []"


# -- sources


async def agenerator() -> AsyncIterator[int]:
    for number in range(3):
        yield number


class Pages:
    """A sequence as old as Python's."""

    def __getitem__(self, index: int) -> int:
        if index > 2:
            raise IndexError
        return index


async def test_anything_iterable_is_a_source(how: str) -> None:
    sources: list[Any] = [
        range(3),
        [0, 1, 2],
        {0: "a", 1: "b", 2: "c"},
        iter([0, 1, 2]),
        (n for n in range(3)),
        agenerator(),
        Pages(),
        itertools.islice(itertools.count(), 3),
        from_iterable(range(3)),
        range(3) | map(int),
    ]
    for source in sources:
        assert await consume(source | map(add_one), how) == [1, 2, 3]
    assert await consume({0, 1, 2} | map(add_one), how) == [1, 2, 3]
    assert await consume("012" | map(int), how) == [0, 1, 2]


async def test_a_generator_is_pulled_in_one_thread_unless_inline() -> None:
    def names() -> Iterator[str]:
        for _ in range(3):
            yield threading.current_thread().name

    assert set(await from_iterable(names())) == {"atasks-source"}
    assert set(await from_iterable(names(), inline=True)) == {threading.current_thread().name}


async def test_a_blocking_source_does_not_block_the_loop() -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        assert gate.wait(60)
        yield 1

    items = aiter(source() | map(str))
    assert await anext(items) == "0"
    gate.set()
    assert [item async for item in items] == ["1"]


async def test_a_run_may_be_a_source_of_several() -> None:
    assert sorted(await merge(range(3) | map(add_one), agenerator())) == [0, 1, 1, 2, 2, 3]


# -- progress


async def test_a_callable_is_told_how_far_each_stage_is(how: str) -> None:
    told: list[tuple[StageProgress, ...]] = []
    run = range(5) | map(add_one) | filter(lambda x: x % 2)
    assert sorted(await consume(run.options(progress=told.append), how)) == [1, 3, 5]
    await until(lambda: bool(told) and all(stage.ended for stage in told[-1]))
    assert told[-1] == (
        StageProgress("add_one", done=5, waiting=0, ended=True),
        StageProgress("<lambda>", done=5, waiting=0, ended=True),
    )
    assert len(told) == len(set(told)), "only when something has changed"


async def test_progress_has_a_total_where_the_source_has_a_length() -> None:
    async def totals(run: Any) -> list[int | None]:
        told: list[tuple[StageProgress, ...]] = []
        await run.options(progress=told.append)
        return [stage.total for stage in told[-1]]

    one = map(add_one)
    assert await totals(range(5) | one | ordered() | one | filter(lambda x: x % 2) | one) == [5, 5, 5, 5, None]
    assert await totals([1, 2] | one | collect() | map(len)) == [2, 2, 1]
    assert await totals((x for x in range(5)) | one) == [None]
    assert await totals(merge([1, 2], {3}) | one | fork(one, one) | one) == [3, 3, None, None, None]
    assert await totals(merge([1, 2], iter([3])) | one) == [None]
    assert await totals(one(3)) == [1]


async def test_progress_says_how_long_a_stage_goes_on_where_that_is_known() -> None:
    told: list[tuple[StageProgress, ...]] = []

    async def slow(n: int) -> int:
        await asyncio.sleep(0.15)
        return n

    await (range(4) | map(slow)).options(progress=told.append)
    first, last = next(state[0] for state in told if state[0].done), told[-1][0]
    assert first.left is not None
    assert first.left > 0.1 * (4 - first.done)
    assert last.left == 0
    assert told[0][0].left is None, "nothing was done yet"
    told.clear()
    await ((x for x in range(4)) | map(add_one)).options(progress=told.append)
    assert told[-1][0].left is None


async def test_progress_can_be_asked_of_sources_and_of_drain() -> None:
    told: list[tuple[StageProgress, ...]] = []
    await (from_iterable(range(3), progress=told.append) | map(add_one))
    assert told[-1][0].done == 3
    told.clear()
    await drain(range(3) | map(add_one), progress=told.append)
    assert told[-1][0].done == 3


async def test_without_a_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    await (range(5) | map(add_one) | map(str)).options(progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "add_one: 5; str: 5"
    assert len(lines) <= 3


async def test_on_a_terminal_there_is_a_bar_per_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert await (range(5) | map(add_one) | map(str)).options(progress=True) == ["1", "2", "3", "4", "5"]
    shown = capsys.readouterr().err
    assert "add_one" in shown
    assert "5/5" in shown


async def test_without_rich_lines_are_printed_on_a_terminal_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    await (range(5) | map(add_one)).options(progress=True)
    assert capsys.readouterr().err.splitlines()[-1] == "add_one: 5"


async def test_a_program_without_a_standard_error_shows_no_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    await (range(5) | map(add_one)).options(progress=True)
    assert capsys.readouterr().out == ""


async def test_a_progress_callable_that_raises_is_reported_and_ends_nothing() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    def broken(state: Any) -> None:
        raise ZeroDivisionError

    assert await (range(3) | map(add_one)).options(progress=broken) == [1, 2, 3]
    assert {context["message"] for context in reported} == {"the progress callable of a pipeline raised"}


def test_lines_become_rarer() -> None:
    async def count() -> int:
        lines = progress.Lines()
        printed: list[str] = []
        for number in range(100):
            before = lines._next
            lines((StageProgress("s", number, 0, ended=False),))
            printed += [""] * (lines._next != before)
        return len(printed)

    assert asyncio.run(count()) == 1


async def test_anext_begins_a_run_and_the_loop_goes_on_with_it() -> None:
    run = range(4) | map(add_one)
    assert await anext(run) == 1
    assert await anext(run) == 2
    assert [item async for item in run] == [3, 4]
    with pytest.raises(StopAsyncIteration):
        await anext(run)
    assert await anext(map(add_one)(1)) == 2
    closed = itertools.count() | map(add_one)
    assert await anext(closed) == 1
    await closed.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(closed)
    with pytest.raises(RuntimeError, match="anext"):
        next(map(add_one)(1))
    used = range(3) | map(add_one)
    await used
    with pytest.raises(PipelineError, match="used once"):
        await anext(used)


async def test_next_begins_a_run_and_the_loop_goes_on_with_it() -> None:
    def program() -> None:
        run = range(4) | map(add_one)
        assert next(run) == 1
        assert list(run) == [2, 3, 4]
        assert next(run, None) is None
        assert next(map(add_one)(1)) == 2
        closed = itertools.count() | map(add_one)
        assert next(closed) == 1
        closed.close()
        assert next(closed, None) is None

    await asyncio.to_thread(program)
