"""Types of pipelines. Checked by `make lint`; never run."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnusedFunction=false, reportUnusedVariable=false, reportUnusedExpression=false

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from atasks import atask
from atasks.pipeline import (
    Handle,
    Pipeline,
    Run,
    bind,
    collect,
    each,
    filter,
    flat_map,
    from_iterable,
    group,
    map,
    merge,
    ordered,
    stage,
)
from atasks.pipeline.run import Many, One


@atask
async def fetch(url: str) -> bytes:
    return url.encode()


async def parse(page: bytes) -> int:
    return len(page)


def label(n: int) -> str:
    return str(n)


async def words(text: str) -> AsyncIterator[str]:
    yield text


def letters(text: str) -> Iterator[str]:
    yield from text


def is_long(text: str) -> bool:
    return len(text) > 3


def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


@stage
async def decorated(n: int, by: int = 2) -> float:
    return n / by


async def stages() -> None:
    assert_type(await stage(fetch)("url"), bytes)
    assert_type(await (stage(fetch) | stage(parse))("url"), int)
    assert_type(await (stage(fetch) | map(parse) | map(label))("url"), str)
    assert_type(await decorated(1, by=3), float)
    assert_type(await (stage(parse) | decorated)(b""), float)


async def branches() -> None:
    assert_type(await (stage(words, branch=True) | map(len))("text"), list[int])
    assert_type(await (flat_map(letters) | filter(is_long))("text"), list[str])
    assert_type(await (flat_map(words) | map(len) | collect())("text"), list[int])
    assert_type(await (flat_map(words) | collect(3))("text"), list[list[str]])
    assert_type(await (flat_map(words) | map(len) | ordered())("text"), list[int])


async def sources() -> None:
    run = ["a", "b"] | map(fetch, workers=3) | map(parse)
    assert_type(run, Run[int, Many])
    assert_type(await run, list[int])
    assert_type([item async for item in ["a"] | map(fetch)], list[bytes])
    assert_type(next(iter(["a"] | map(fetch))), bytes)
    assert_type(await (["a"] | map(fetch) | ordered() | map(parse)), list[int])
    assert_type(await (["a"] | map(fetch) | collect()), list[list[bytes]])
    assert_type(await from_iterable(["a"]), list[str])
    assert_type(await (words("text") | map(len)), list[int])
    assert_type(await merge(["a"], ["b"]), list[str])
    assert_type(await (["a"] | map(fetch)).one(), bytes)
    assert_type(await (["a"] | map(fetch)).indexed(), list[tuple[tuple[int, ...], bytes]])
    assert_type(await ([b"x"] | map(parse) | stage(total, join=True)), list[int])
    assert_type(await ([1] | group(label, label)), list[tuple[Any, ...]])


def consumers() -> None:
    assert_type((flat_map(letters) > list)("text"), list[str])
    assert_type(flat_map(letters)("text") | sum_of_lengths, int)


async def apply(pipeline: Pipeline[[str], bytes, One]) -> bytes:
    return await pipeline("url")


async def as_arguments() -> None:
    assert_type(await apply(stage(fetch)), bytes)


async def submitted(one: Pipeline[[str], bytes, One], many: Pipeline[[str], bytes, Many]) -> None:
    assert_type(await one.submit("url"), Handle[bytes])
    assert_type(await (await one.submit("url")), bytes)
    assert_type(await many.submit("url"), Handle[list[bytes]])
    assert_type(await (await stage(fetch).submit("url")), bytes)
    assert_type(one.submit.sync("url"), Handle[bytes])
    assert_type(many.submit.sync("url"), Handle[list[bytes]])
    assert_type(many.submit.sync("url").sync(), list[bytes])
    one.submit.soon("url")
    await one.submit(1)  # type: ignore[arg-type]
    one.submit.sync(1)  # type: ignore[arg-type]
    one.submit.soon(1)  # type: ignore[arg-type]


def sum_of_lengths(run: Run[str, Many]) -> int:
    return sum(len(text) for text in run)


async def power(base: int, exponent: int) -> int:
    return int(base**exponent)


def even(n: int, session: str) -> bool:
    return n % 2 == 0


async def repeated(times: int, text: str, sep: str = "") -> bytes:
    return sep.join([text] * times).encode()


def above(n: int, limit: int) -> bool:
    return n > limit


async def below(name: str, n: int) -> bool:
    return n < len(name)


def halves(text: str, at: int) -> list[str]:
    return [text[:at], text[at:]]


@atask
async def scaled_remotely(by: float, n: int) -> float:
    return by * n


async def more_arguments() -> None:
    assert_type(await ([1] | map(power, bind=bind(exponent=2))), list[int])
    assert_type(await map(repeated, bind=bind(2))("text"), bytes)
    assert_type(await stage(repeated, bind=bind(2, sep="-"), workers=1)("text"), bytes)
    assert_type(await stage(repeated, bind=bind(times=2), param_name="text")("text"), bytes)
    assert_type(await ([1] | filter(above, bind=bind(limit=2))), list[int])
    assert_type(await ([1] | filter(below, bind=bind("x")) | map(label)), list[str])
    assert_type(await flat_map(halves, bind=bind(at=2))("text"), list[str])
    assert_type(await stage(halves, branch=True, bind=bind(at=2))("text"), list[str])
    assert_type(await ([1] | each(above, bind=bind(limit=2))), list[Any])
    assert_type(await map(scaled_remotely, bind=bind(2.0))(1), float)
    map(power, bind=bind(exponent=2))("text")  # type: ignore[arg-type]
    map(repeated, bind=bind(2))(1)  # type: ignore[arg-type]
    ["a"] | map(power, bind=bind(exponent=2))  # type: ignore[operator]
    [1] | map(repeated, bind=bind(2))  # type: ignore[operator]
    ["a"] | filter(above, bind=bind(limit=2))  # type: ignore[operator]
    [1] | flat_map(halves, bind=bind(at=2))  # type: ignore[operator]
    ["a"] | map(scaled_remotely, bind=bind(2.0))  # type: ignore[operator]
    stage(parse) | map(repeated, bind=bind(2))  # type: ignore[operator]
    assert_type(await ([(1, 2)] | stage(power, unpack=True) | map(label)), list[str])
    assert_type(await ([1] | (map(label) | map(len) | map(power, bind=bind(exponent=2)))), list[int])
    await ([1] | filter(even, on_start=dict) | map(label))
    ["a"] | map(power)  # type: ignore[operator]


async def mistakes() -> None:
    stage(parse) | stage(fetch)  # type: ignore[operator]
    ["a"] | map(parse)  # type: ignore[operator]
    map(parse, worker=3)  # type: ignore[call-overload]
    stage(parse)("text")  # type: ignore[arg-type]
