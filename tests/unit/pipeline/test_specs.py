"""Pipelines are values: immutable, comparable, storable; what cannot work fails when it is written."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import pickle
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atasks import atask
from atasks.pipeline import (
    AbortPipeline,
    Pipeline,
    PipelineError,
    Stage,
    api,
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
from atasks.pipeline.flow.invocation import name_of
from tests.unit.pipeline.kinds import consume


async def coroutine(x: int) -> int:
    return x


async def agenerator(x: int) -> AsyncIterator[int]:
    yield x


@atask(name="specs-remote", namespace="specs")
async def remote(x: int) -> int:
    return x


@atask(name="specs-remote-stream", namespace="specs")
async def remote_stream(x: int) -> AsyncIterator[int]:
    yield x


def plain(x: int) -> int:
    return x


# -- options


@pytest.mark.parametrize("option", ["workers", "throttle"])
@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (2.0, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_counts_are_whole_numbers(option: str, value: Any, error: type[Exception]) -> None:
    for make in (stage, map, filter, flat_map, each):
        with pytest.raises(error, match=option):
            make(plain, **{option: value})


def test_workers_are_at_least_one_and_throttle_may_be_0() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        map(plain, workers=0)
    assert map(plain, throttle=0, workers=None).stages[0].options.throttle == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"worker": 3}, TypeError, "unknown option 'worker' of a stage: did you mean 'workers'"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": float("nan")}, ValueError, "timeout is a number of seconds, not NaN"),
        ({"timeout": float("inf")}, ValueError, "10 years"),
        ({"timeout": 10 * 365 * 24 * 3600 + 1}, ValueError, "10 years"),
        ({"timeout": 10**30}, ValueError, "10 years"),
        ({"timeout": "1"}, TypeError, "timeout is a number"),
        ({"bind": {"x": 1}}, TypeError, "bind is what bind"),
        ({"param_name": 1}, TypeError, "param_name"),
        ({"on_start": 1}, TypeError, "on_start is a function"),
        ({"skip_errors": 1}, TypeError, "skip_errors is True or False"),
        ({"multiprocess": True, "inline": True}, ValueError, "choose multiprocess or inline"),
        ({"unpack": True, "param_name": "x"}, ValueError, "not both"),
        ({"join": True, "inline": True}, ValueError, "would block the event loop"),
        ({"join": True, "timeout": 1}, ValueError, "timeout means nothing for a join"),
        ({"join": True, "workers": None}, ValueError, "once per worker"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stage(plain, **options)


@pytest.mark.parametrize("function", [coroutine, agenerator, remote, map(plain)])
@pytest.mark.parametrize("option", ["multiprocess", "inline"])
def test_processes_and_inline_are_for_plain_functions(function: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=True is for plain functions"):
        stage(function, **{option: True})


@pytest.mark.parametrize("make", [stage, map, filter, each, group])
@pytest.mark.parametrize("function", [agenerator, remote_stream])
def test_an_async_generator_is_a_branch(make: Any, function: Any) -> None:
    with pytest.raises(TypeError, match=rf"is an async generator, .*: write flat_map\({name_of(function)}\)"):
        make(function)
    flat_map(function)
    stage(function, branch=True)


def test_what_cannot_be_pickled_cannot_run_in_a_process() -> None:
    def closure(x: int) -> Any:
        return generator

    generator = (n for n in range(3))
    with pytest.raises(TypeError, match="'closure' cannot run in a process"):
        map(closure, multiprocess=True)
    with pytest.raises(TypeError, match="'plain' cannot run in a process"):
        map(plain, multiprocess=True, bind=bind(generator))


def test_an_atask_cannot_join() -> None:
    with pytest.raises(TypeError, match=r"'specs-remote'|'remote' is an atask"):
        stage(remote, join=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: stage(3), TypeError, "needs a function, not int"),
        (lambda: ordered(0), ValueError, "window=0"),
        (lambda: ordered(1.5), TypeError, "window"),  # type: ignore[arg-type]
        (lambda: collect(0), ValueError, "n=0"),
        (lambda: group(), ValueError, "at least one function"),
        (lambda: group(plain, skip_errors=3), TypeError, "skip_errors"),  # type: ignore[arg-type]
        (lambda: group(plain, unpack=True), TypeError, "unknown option 'unpack' of a group"),  # type: ignore
        (lambda: group(stage(list, join=True)), ValueError, "joins a stream"),
        (lambda: stage(map(plain, workers=2)), ValueError, "workers=2"),
        (lambda: fork(), ValueError, "at least one"),
        (lambda: fork(plain), TypeError, "fork takes pipelines, not function"),
        (lambda: fork(Pipeline()), ValueError, "with stages"),
        (lambda: merge(3), TypeError, "int is no source"),
        (lambda: from_iterable(plain), TypeError, "write stage"),
        (lambda: 3 | map(plain), TypeError, "int is no source"),
        (lambda: plain | map(plain), TypeError, "write stage"),
        (lambda: map(plain) | plain, TypeError, r"write pipeline \| stage\(plain\)"),
        (lambda: map(plain) > 3, TypeError, "takes a function of a run, not int"),
        (lambda: Pipeline(plain), TypeError, "consists of stages"),
        (lambda: range(3) | map(plain) | 3, TypeError, "unsupported operand"),
        (lambda: from_iterable([1], progress=3), TypeError, "progress is True or a callable"),
    ],
)
def test_what_cannot_work_fails_when_it_is_written(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_needs_a_stream_cannot_be_called() -> None:
    for p in (map(plain, workers=2), map(plain, workers=None), stage(list, join=True), collect(), Pipeline()):
        with pytest.raises(ValueError, match=r"stream|workers|without stages|joins"):
            p(1)
    assert stage(remote)(1), "its 64 workers are nobody's decision"


async def test_the_same_is_legal_behind_a_source(how: str) -> None:
    for p in (map(plain, workers=2), map(plain, workers=None), stage(list, join=True, branch=True), collect(1)):
        assert len(await consume(range(3) | p, how)) == 3


# -- values


def test_a_pipeline_never_changes() -> None:
    p = map(plain)
    stages = p.stages
    assert (p | p).stages == stages * 2
    assert p.pipe(p) == p | p
    assert p.stages is stages
    with pytest.raises(AttributeError):
        p.stages = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.stages[0].role = "filter"  # type: ignore[attr-defined]


async def test_a_pipeline_runs_as_often_as_it_is_asked_to() -> None:
    p = map(plain, workers=3)
    assert await (range(3) | p) == await (range(3) | p) == [0, 1, 2]


async def test_a_run_is_used_once(how: str) -> None:
    run = range(3) | map(plain)
    await consume(run, how)
    with pytest.raises(PipelineError, match="used once"):
        await run
    with pytest.raises(PipelineError, match="used once"):
        run | map(plain)
    assert repr(run) == "<run of plain, used>"


ALL = (
    map(plain, workers=3, bind=bind(), throttle=2, timeout=3.0)
    | stage(remote)
    | stage(remote.options(queue="other"))
    | filter(bool)
    | flat_map(range, skip_errors=True)
    | ordered(5)
    | group(plain, remote)
    | fork(map(plain), each(print))
    | collect(3)
    | stage(sorted, join=True)
)


def test_a_dump_is_equal_and_can_be_extended() -> None:
    text = ALL.dumps()
    assert isinstance(text, str)
    loaded = Pipeline.loads(text)
    assert loaded == ALL
    assert hash(loaded) == hash(ALL)
    assert loaded | map(plain) == ALL | map(plain)
    assert loaded != ALL | map(plain)
    assert pickle.loads(pickle.dumps(ALL)) == ALL
    assert loaded != 3


async def test_a_dump_of_what_cannot_be_imported_is_equal_too() -> None:
    factor = 3
    p = map(lambda x: x * factor) | filter(lambda x: x % 2)
    loaded = Pipeline.loads(p.dumps())
    assert loaded == p
    assert loaded != map(lambda x: x * factor) | filter(lambda x: x % 3)
    assert await (range(5) | loaded) == [3, 9]


@pytest.mark.parametrize("text", ["", "x", "atasks-pipeline-1:x", "atasks-pipeline-1:AAAA", "atasks-pipeline-2:"])
def test_a_bad_dump_fails_when_it_is_loaded(text: str) -> None:
    with pytest.raises(PipelineError, match="dump"):
        Pipeline.loads(text)


def test_a_dump_is_text_and_names_what_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="a dump is a string, not bytes"):
        Pipeline.loads(b"")  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="stage 'plain' cannot be pickled"):
        (map(str) | map(plain, bind=bind(n for n in range(3)))).dumps()


def test_comparing_in_a_chain_says_what_to_write() -> None:
    p = map(plain)
    with pytest.raises(TypeError, match=r"write pipeline\.consume"):
        _ = p > list > len
    assert "plain" in repr(p > list)


class Array:
    """Takes what it can of operators, as arrays do."""

    __array_interface__ = None

    def __iter__(self) -> Any:
        return iter([1, 2])

    def __or__(self, other: Any) -> Any:
        return "mine" if getattr(other, "__array_ufunc__", self) is not None else NotImplemented


async def test_an_array_is_a_source() -> None:
    assert await (Array() | map(plain)) == [1, 2]


@dataclass(frozen=True)
class Every(Stage):
    """Every nth item."""

    n: int
    name = "every"

    async def run(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        number = 0
        async for item in stream:
            if number % self.n == 0:
                yield item
            number += 1


async def test_a_stage_of_ones_own(how: str) -> None:
    p = map(plain, workers=1) | Every(3) | map(str, workers=3) | ordered()
    assert await consume(range(10) | p, how) == ["0", "3", "6", "9"]
    assert Pipeline.loads(p.dumps()) == p
    assert await consume(range(10) | Every(5), how) == [0, 5]
    assert await (Every(1) | map(plain))(4) == [4]


async def test_a_stage_of_ones_own_may_end_the_stream_or_fail() -> None:
    class First(Stage):
        name = "first"

        async def run(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
            yield await anext(stream)

    class Broken(Stage):
        name = "broken"

        async def run(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
            yield 1
            raise ZeroDivisionError

    assert await (itertools.count() | map(plain, workers=3) | First()) in ([0], [1], [2])
    with pytest.raises(ZeroDivisionError) as raised:
        await (range(3) | Pipeline(Broken()))
    assert raised.value.__notes__ == ["in stage 'broken'"]
    with pytest.raises(NotImplementedError, match="write it as an async generator"):
        await (range(3) | Pipeline(Stage()))


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(AbortPipeline("enough")))
    assert (error.reason, str(error)) == ("enough", "enough")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: map(plain, retries=3), TypeError, "repeat within the function"),
        (lambda: map(remote, max_attempts=3), TypeError, "repeat within the function"),
        (lambda: map(plain, concurrency=3), TypeError, "write workers="),
        (lambda: map(plain, maxsize=3), TypeError, "write throttle="),
        (lambda: map(plain, executor="process"), TypeError, "multiprocess=True in processes"),
        (lambda: map(plain, [1, 2]), TypeError, r"write data \| map\(plain\)"),
        (lambda: filter(plain, [1, 2], [3]), TypeError, r"write data \| filter\(plain\)"),
        (lambda: flat_map(plain, range(3)), TypeError, r"write data \| flat_map\(plain\)"),
        (lambda: each(plain, None), TypeError, r"write data \| each\(plain\)"),
        (lambda: map([1, 2], plain), TypeError, r"write data \| map"),
        (lambda: map(None, [1]), TypeError, r"write data \| map\(f\)"),
        (lambda: stage([1, 2]), TypeError, "a stage needs a function, not list"),
        (lambda: group([plain, plain]), TypeError, r"group\(\*functions\)"),
        (lambda: group(plain, 3), TypeError, "not int"),
        (lambda: fork([map(plain)]), TypeError, r"fork\(\*pipelines\)"),
        (lambda: fork(plain), TypeError, r"fork\(stage\(f\), ...\)"),
    ],
)
def test_what_others_write_says_what_to_write_here(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


async def test_drain_takes_runs() -> None:
    runs = [range(3) | map(plain), range(3) | map(plain)]
    with pytest.raises(TypeError, match=r"drain takes runs, not list: write drain\(\*runs\)"):
        await drain(runs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="drain takes runs, not Pipeline: call it"):
        await drain(map(plain))  # type: ignore[arg-type]
    await drain(*runs)


def test_the_types_of_the_functions_are_those_of_their_own_file() -> None:
    path = Path(api.__file__)
    stub = ast.parse(path.with_suffix(".pyi").read_text())
    typed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert typed == set(api.__all__)
