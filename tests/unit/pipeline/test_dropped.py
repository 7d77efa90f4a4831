"""Items that `skip_errors` drops: they are counted, told of, and not more than `max_errors` says."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import atasks
from atasks import Limit, atask
from atasks.pipeline import (
    AbortPipeline,
    Pipeline,
    PipelineError,
    StageProgress,
    collect,
    each,
    filter,
    flat_map,
    group,
    map,
    stage,
)
from atasks.testing import soon

told: list[tuple[Any, str]] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    told.clear()


def third_fails(n: int) -> int:
    if n % 3 == 0:
        raise ValueError(f"bad {n}")
    return n


async def third_fails_later(n: int) -> int:
    await asyncio.sleep(0)
    return third_fails(n)


def children(n: int) -> Iterator[int]:
    yield n
    yield third_fails(n)


def tell(item: Any, error: Exception) -> None:
    told.append((item, str(error)))


async def tell_later(item: Any, error: Exception) -> None:
    await asyncio.sleep(0)
    tell(item, error)


@atask
async def third_fails_there(n: int) -> int:
    return third_fails(n)


@atask
async def tell_there(item: int, error: Exception) -> None:
    tell(item, error)


@pytest.mark.parametrize("function", [third_fails, third_fails_later])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("handler", [tell, tell_later])
async def test_each_dropped_item_is_told_and_counted(function: Any, workers: int, handler: Any) -> None:
    states: list[tuple[StageProgress, ...]] = []
    run = range(10) | map(function, workers=workers, skip_errors=True, on_error=handler) | map(str)
    assert await run.options(progress=states.append) == ["1", "2", "4", "5", "7", "8"]
    assert sorted(told) == [(n, f"bad {n}") for n in (0, 3, 6, 9)]
    assert [(state.name, state.done, state.dropped) for state in states[-1]] == [
        (function.__name__, 10, 4),
        ("str", 6, 0),
    ]


async def test_branches_filters_processes_and_calls() -> None:
    options: dict[str, Any] = {"skip_errors": True, "on_error": tell}
    assert await (range(4) | flat_map(children, **options)) == [0, 1, 1, 2, 2, 3]
    assert await (range(4) | filter(third_fails, **options)) == [1, 2]
    assert await (range(4) | each(third_fails, **options)) == []
    assert await (range(4) | map(third_fails, multiprocess=True, **options)) == [1, 2]
    assert await stage(third_fails, **options)(3) == []
    assert sorted(told) == sorted([*[(n, f"bad {n}") for n in (0, 3)] * 4, (3, "bad 3")])


def test_where_no_event_loop_runs() -> None:
    assert list(range(5) | map(third_fails, skip_errors=True, on_error=tell_later)) == [1, 2, 4]
    assert told == [(0, "bad 0"), (3, "bad 3")]


async def test_on_error_may_end_the_run() -> None:
    def stop(item: int, error: Exception) -> None:
        raise AbortPipeline("no more") from error

    with pytest.raises(AbortPipeline, match="no more") as caught:
        await (range(9) | map(third_fails, skip_errors=True, on_error=stop))
    assert str(caught.value.__cause__) == "bad 0"
    assert caught.value.__notes__ == ["in on_error of stage 'third_fails', at item (0,)"]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("most", "length", "ends"),
    [
        (0, 1, True),
        (0, 0, False),
        (4, 10, False),
        (3, 10, True),
        (0.4, 10, False),
        (0.39, 10, True),
        (0.0, 3, True),
        (1.0, 10, False),
        (0.35, 1000, False),
        (0.3, 1000, True),
    ],
)
async def test_more_than_max_errors_end_the_run(most: float, length: int, ends: bool, workers: int) -> None:
    run = range(length) | map(third_fails, workers=workers, skip_errors=True, max_errors=most)
    if not ends:
        assert len(await run) == length - math.ceil(length / 3)
        return
    with pytest.raises(PipelineError, match=rf"items have failed, and max_errors is {most}") as caught:
        await run
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__notes__ == ["in stage 'third_fails'"]


async def test_a_share_ends_an_endless_run_from_its_hundredth_item_on() -> None:
    async def endless() -> AsyncIterator[int]:
        number = 1
        while True:
            yield number
            number += 1

    got = []
    with pytest.raises(PipelineError, match=r"of \d+ items have failed, and max_errors is 0\.3"):
        async for item in endless() | map(third_fails, skip_errors=True, max_errors=0.3):
            got.append(item)  # noqa: PERF401 - those before an error count
    assert 50 <= len(got) <= 70


def test_lines_and_bars_say_how_many(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    list((range(5) | map(third_fails, skip_errors=True)).options(progress=True))
    assert capsys.readouterr().err.splitlines()[-1] == "third_fails: 5, 2 dropped"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    list((range(5) | map(third_fails, skip_errors=True)).options(progress=True))
    assert "third_fails (2 dropped)" in terminal.getvalue()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on_error": tell}, ValueError, "say skip_errors=True beside on_error"),
        ({"max_errors": 0}, ValueError, "say skip_errors=True beside max_errors"),
        ({"skip_errors": True, "max_errors": -1}, ValueError, "at least 0"),
        ({"skip_errors": True, "max_errors": 1.5}, ValueError, "write an int"),
        ({"skip_errors": True, "max_errors": float("nan")}, ValueError, "a share"),
        ({"skip_errors": True, "max_errors": True}, TypeError, "not True"),
        ({"skip_errors": True, "max_errors": "5%"}, TypeError, "not '5%'"),
        ({"skip_errors": True, "on_error": "log"}, TypeError, "on_error is a function, not str"),
        ({"limit": 5}, TypeError, "limit is a Limit"),
        ({"rate_limit": 5}, TypeError, r"write limit=Limit\(name, per_second=...\)"),
        ({"join": True, "skip_errors": True, "on_error": tell}, ValueError, "on_error means nothing for a join"),
        ({"join": True, "skip_errors": True, "max_errors": 0}, ValueError, "max_errors means nothing for a join"),
        ({"join": True, "limit": Limit("api", at_once=1)}, ValueError, "limit means nothing for a join"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stage(third_fails, **options)


def test_pipelines_with_these_options_are_equal_and_travel() -> None:
    made = [
        map(third_fails, skip_errors=True, on_error=tell, max_errors=0.5, limit=Limit("api", per_second=5))
        for _ in range(2)
    ]
    assert made[0] == made[1] == Pipeline.loads(made[0].dumps())
    assert made[0] != map(third_fails, skip_errors=True, on_error=tell, max_errors=0.5)


# -- on the workers


@pytest.fixture
async def workers() -> AsyncIterator[None]:
    async with atasks.connect("loopback:"):
        yield


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@pytest.mark.usefixtures("workers")
async def test_a_submitted_run_tells_an_atask_and_ends_with_too_many() -> None:
    first = flat_map(upto) | map(third_fails_there, skip_errors=True, on_error=tell_there)
    assert await soon(await soon(first.submit(7))) == [1, 2, 4, 5]
    assert sorted(told) == [(n, f"bad {n}") for n in (0, 3, 6)]
    handle = await soon((flat_map(upto) | map(third_fails_there, skip_errors=True, max_errors=2)).submit(7))
    with pytest.raises(PipelineError, match="3 items have failed, and max_errors is 2"):
        await soon(handle)
    assert len(await soon(await soon((first | collect()).submit(7)))) == 4


@pytest.mark.usefixtures("workers")
async def test_what_cannot_be_submitted() -> None:
    with pytest.raises(TypeError, match="'tell' is on_error of stage 'third_fails_there', a local function"):
        await map(third_fails_there, skip_errors=True, on_error=tell).submit(1)
    keyed = Limit("api", at_once=1, key=str)
    with pytest.raises(TypeError, match="'str' is the key of limit 'api'"):
        await map(third_fails_there, limit=keyed).submit(1)
    elsewhere = Limit("api", at_once=1, namespace="elsewhere")
    with pytest.raises(atasks.DecodeError, match="limit 'api' is of namespace 'elsewhere'"):
        await map(third_fails_there, limit=elsewhere).submit(1)
    with pytest.raises(TypeError, match="on_error"):
        group(third_fails_there, on_error=tell)  # type: ignore[call-arg]
