"""Random trees of calls that resume: what each of them is worth if nothing fails, and how it is grown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import atasks
from atasks import Limit, RemoteError, Retry, atask, current_call
from atasks.pipeline import map
from tests.faults.resuming import begin, recorder

__all__ = ["KINDS", "Shape", "begin", "grow", "is_local", "times_of", "value_of"]

Shape = dict[str, Any]
"""A tree of calls: its `kind`, and the trees `below`, or the `value` of a leaf after a `pause`."""
TWO = Limit("resuming-two", at_once=2)
EQUAL = 3
"""Calls that a run makes alike."""
BRANCHES = 3
"""Calls of a step that makes several."""
SIZE = 200_000
"""Bytes of a large result."""
SHARES = {
    "caught": -1,
    "foreign": -1,
    "grouped": -1,
    "timed": -2,
    "late": -2,
    "cancelled": -3,
    "shielded": 4,
    "once": 7,
    "completed": 3,
    "queued": 3,
    "staged": 3,
    "threaded": 3,
    "streamed": 3,
    "keyed": 2,
    "large": SIZE,
}
"""Kind of a tree -> what its own step adds to its value."""
KINDS = ["row", "row", "fan", "same", "equal", "tried", "again", "limited", "sleep", *SHARES]
"""The kinds of a tree that is no leaf, the first ones more often."""


def times_of(step: str) -> int:
    """The number of calls of `grow` that have this key on record."""
    return EQUAL if step.endswith(".e") else 1


def is_local(step: str) -> bool:
    """Return True for the key of a local step, which runs within the call that makes it."""
    return step.endswith(".o")


def value_of(shape: Shape) -> int:
    """The value of `grow` if nothing fails."""
    if shape["kind"] == "leaf":
        return int(shape["value"])
    values = [value_of(each) for each in shape["below"]]
    if shape["kind"] in ("same", "equal"):
        return EQUAL * sum(values)
    return SHARES.get(shape["kind"], 0) + sum(values)


@atask(max_attempts=20)
async def leaf(key: str, value: int, pause: float) -> int:
    """The value."""
    with recorder().run(key):
        await asyncio.sleep(pause)
        return value


@atask(max_attempts=20)
async def failing(key: str) -> int:
    """Raises."""
    with recorder().run(key):
        raise LookupError(key)


@atask(max_attempts=20)
async def foreign(key: str) -> None:
    """Raises what its caller is not to raise too."""
    with recorder().run(key):
        sys.exit(key)


@atask(max_attempts=20)
async def idle() -> None:
    """Never ends by itself. It is not put on record: it may end, and its await too, at the same time."""
    await asyncio.Event().wait()


@atask(max_attempts=20)
async def item(named: tuple[str, int]) -> int:
    """The number of an item of a pipeline."""
    return await leaf.local(*named, 0.02)


@atask(resume=True, max_attempts=20, executor="thread")
def threaded(key: str) -> int:
    """The number of calls that a thread makes."""
    return sum(leaf.sync(f"{key}.{number}.w", 1, 0.05) for number in range(BRANCHES))


@atask(max_attempts=20, replayable=True)
async def counted(count: int) -> AsyncIterator[int]:
    """Numbers from 0 on, so many of them."""
    for number in range(count):
        yield number


@atask(max_attempts=20)
async def large(key: str) -> bytes:
    """A large result."""
    with recorder().run(key):
        return bytes(SIZE)


@atask(max_attempts=20, retry=Retry(on=ConnectionError, wait=0.01, jitter=0.0))
async def flaky(key: str) -> int:
    """Nothing, at the second try."""
    tries = current_call().try_
    with recorder().run(f"{key}-{tries}"):
        if tries == 1:
            raise ConnectionError(key)
        return 0


@atask(max_attempts=20, limit=TWO)
async def held(key: str) -> int:
    """Nothing, two at a time."""
    with recorder().run(key):
        await asyncio.sleep(0.02)
        return 0


@atask(resume=True, max_attempts=20)
async def grow(key: str, shape: Shape) -> int:
    """The value of the tree, every call of which is a step."""
    with recorder().run(key):
        return await _grown(key, shape)


@atask(resume=True, max_attempts=20, retry=Retry(on=ConnectionError, wait=0.01, jitter=0.0))
async def twice(key: str, shape: Shape) -> int:
    """Grow as `grown` does; the first try fails when all of it is done."""
    with recorder().run(f"{key}.try-{current_call().try_}"):
        total = await _grown(key, shape)
        if current_call().try_ == 1:
            raise ConnectionError(key)
        return total


async def _grown(key: str, shape: Shape) -> int:
    if shape["kind"] == "leaf":
        return await leaf(f"{key}.l", shape["value"], shape["pause"])
    below = [(f"{key}.{number}", each) for number, each in enumerate(shape["below"])]
    match shape["kind"]:
        case "fan":
            return sum(await asyncio.gather(*(grow(*each) for each in below)))
        case "same":
            calls = [_named(grow, *each, number) for each in below for number in range(EQUAL)]
            return sum(await asyncio.gather(*calls))
        case "equal":
            calls = [
                leaf(f"{key}.{n}.e", value_of(each), 0.05)
                for n, (_, each) in enumerate(below)
                for _ in range(EQUAL)
            ]
            return sum(await asyncio.gather(*calls))
        case "again":
            return sum([await twice(*each) for each in below])
    total = await STEPS[shape["kind"]](key) if shape["kind"] in STEPS else 0
    for each in below:
        total += await grow(*each)
    return total


async def _caught(key: str) -> int:
    try:
        return await failing(f"{key}.f")
    except LookupError:
        return -1


async def _foreign(key: str) -> int:
    try:
        await foreign(f"{key}.x")
    except RemoteError:
        return -1
    return 0


async def _grouped(key: str) -> int:
    value = 0
    try:
        async with asyncio.TaskGroup() as group:
            for call in (idle(), failing(f"{key}.f"), idle()):
                group.create_task(call)
    except* LookupError:
        value = -1
    return value


async def _timed(key: str) -> int:
    try:
        async with asyncio.timeout(0.1):
            await idle()
    except TimeoutError:
        return -2
    return 0


async def _late(key: str) -> int:
    try:
        await idle.options(timeout=0.2)()
    except atasks.CallTimeout:
        return -2
    return 0


async def _cancelled(key: str) -> int:
    call = asyncio.create_task(idle())
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.wait([call])
    return -3 if call.cancelled() else 0


async def _shielded(key: str) -> int:
    call = asyncio.create_task(leaf(f"{key}.s", 4, 0.2))
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(call), 0.05)
    return await call


async def _once(key: str) -> int:
    seven = await atasks.once(_seven, key)
    recorder().safe(f"{key}.o")
    return seven


async def _completed(key: str) -> int:
    calls = [leaf(f"{key}.{number}.c", 1, 0.02 * (BRANCHES - number)) for number in range(BRANCHES)]
    return sum([await call for call in asyncio.as_completed(calls)])


async def _queued(key: str) -> int:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def give() -> None:
        for number in range(BRANCHES):
            await queue.put(await leaf(f"{key}.{number}.q", number, 0.02))

    async def take() -> int:
        return sum([await leaf(f"{key}.{number}.p", await queue.get(), 0.0) for number in range(BRANCHES)])

    _, taken = await asyncio.gather(give(), take())
    return taken


async def _staged(key: str) -> int:
    items = [(f"{key}.{number}.i", number) for number in range(BRANCHES)]
    return sum(await (items | map(item, workers=2)))


async def _streamed(key: str) -> int:
    return sum([number async for number in counted(BRANCHES)])


async def _keyed(key: str) -> int:
    return sum([await leaf.options(key=name)(f"{key}.{name}.k", 1, 0.0) for name in "ab"])


async def _large(key: str) -> int:
    return len(await large(f"{key}.g"))


async def _slept(key: str) -> int:
    await atasks.sleep(0.2)
    return 0


STEPS: dict[str, Callable[[str], Awaitable[int]]] = {
    "tried": lambda key: flaky(f"{key}.t"),
    "limited": lambda key: held(f"{key}.h"),
    "threaded": threaded,
    "sleep": _slept,
    "caught": _caught,
    "foreign": _foreign,
    "grouped": _grouped,
    "timed": _timed,
    "late": _late,
    "cancelled": _cancelled,
    "shielded": _shielded,
    "once": _once,
    "completed": _completed,
    "queued": _queued,
    "staged": _staged,
    "streamed": _streamed,
    "keyed": _keyed,
    "large": _large,
}
"""Kind of a tree -> what its own step does."""


def _named(task: Any, key: str, shape: Shape, number: int) -> Any:
    """One of several calls of the same shape."""
    return task(f"{key}.{number}", shape)


def _seven(key: str) -> int:
    with recorder().run(f"{key}.o"):
        return 7
