"""Atasks that resume. Each step is put on record by the worker that runs it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import atasks
from atasks import Limit, Retry, atask, current_call, wire
from atasks.transport.backends.amqp.worker.replies import ReplyMessage
from atasks.transport.journals import lasts
from tests.faults.history import Recorder

__all__ = [
    "Shape",
    "begin",
    "drawing",
    "fanned",
    "given_up",
    "grow",
    "guarded",
    "guarding",
    "is_local",
    "late",
    "once_in_a_row",
    "row",
    "step",
    "times_of",
    "tree",
    "value_of",
]


def begin(record: Path) -> None:
    """Have this worker put on record when its replies are safe."""
    recorder, confirmed = Recorder(record), ReplyMessage.confirmed

    def noted(message: ReplyMessage) -> None:
        confirmed(message)
        for reply in wire.decode(message.body):
            if isinstance(reply, wire.Reply) and lasts(reply):
                recorder.safe(reply.id)

    ReplyMessage.confirmed = noted  # type: ignore[method-assign]


def _recorder() -> Recorder:
    recorder = current_call().state
    assert isinstance(recorder, Recorder), "workers of these tests have a recorder as their state"
    return recorder


async def opened(gate: str) -> None:
    """Return when the file exists."""
    while gate and not os.path.exists(gate):  # another process makes it
        await asyncio.sleep(0.02)


@atask(max_attempts=20)
async def step(key: str, gate: str = "") -> int:
    """The process that ran it, once the file `gate` exists."""
    with _recorder().run(key):
        await opened(gate)
        return os.getpid()


@atask(resume=True, max_attempts=20)
async def row(key: str, gates: list[str]) -> list[Any]:
    """Make one step per gate, one after the other; wait for the gate behind each."""
    with _recorder().run(key):
        made: list[Any] = []
        for number, gate in enumerate(gates):
            made.append(await step(f"{key}-{number}"))
            made.append(await atasks.once(os.getpid))
            await opened(gate)
        return made


@atask(resume=True, max_attempts=20)
async def fanned(key: str, queue: str, gates: list[str], delivery: Any = "at_least_once") -> list[int]:
    """Make one step per gate, all at once, on this queue."""
    with _recorder().run(key):
        there = step.options(queue=queue, delivery=delivery)
        return await asyncio.gather(*(there(f"{key}-{number}", gate) for number, gate in enumerate(gates)))


@atask(resume=True, max_attempts=20)
async def late(key: str, queue: str, gates: list[str], end: str) -> list[int]:
    """Two steps on this queue, for which each run waits at a gate of its own; then it waits for its end."""
    with _recorder().run(key):
        await opened(gates[current_call().attempt - 1])
        made = [await step.options(queue=queue)(f"{key}-{number}") for number in range(2)]
        await opened(end)
        return made


@atask(resume=True, max_attempts=20)
async def gated(key: str, queue: str, gate: str, end: str) -> int:
    """One step on this queue, which waits for the gate; then the call waits for its end."""
    with _recorder().run(key):
        made = await step.options(queue=queue)(f"{key}-0", gate)
        await opened(end)
        return made


@atask(max_attempts=20, limit=Limit("resuming-one", at_once=1))
async def guarded(key: str, gate: str = "") -> int:
    """Do the work of `step`, one call at a time."""
    with _recorder().run(key):
        await opened(gate)
        return os.getpid()


@atask(resume=True, max_attempts=20)
async def guarding(key: str, queue: str, gate: str) -> list[int]:
    """Two such steps, on this queue: the second one waits until the first one has passed the gate."""
    there = guarded.options(queue=queue)
    with _recorder().run(key):
        first = asyncio.create_task(there(f"{key}-0", gate))
        while not os.path.exists(f"{gate}-second"):
            await asyncio.sleep(0.02)
        return [await there(f"{key}-1"), await first]


@atask(resume=True, max_attempts=1)
async def given_up(key: str, queue: str, gate: str) -> int:
    """One step, which its worker does not live to see the end of."""
    with _recorder().run(key):
        return await step.options(queue=queue)(f"{key}-0", gate)


@atask(resume=True, max_attempts=20)
async def once_in_a_row(key: str, count: int) -> int:
    """The last of so many numbers that are drawn."""
    number = 0
    for _ in range(count):
        number = await atasks.once(_drawn, key)
    return number


@atask(resume=True, max_attempts=20)
async def drawing(key: str, queue: str, gates: list[str]) -> list[int]:
    """Draw one number per gate, each behind a step on this queue; then wait for the gate."""
    with _recorder().run(key):
        numbers: list[int] = []
        for number, gate in enumerate(gates):
            await step.options(queue=queue)(f"{key}-{number}")
            numbers.append(await atasks.once(_drawn, f"{key}-{number}"))
            await opened(gate)
        return numbers


def _drawn(key: str) -> int:
    with _recorder().run(f"{key}-drawn"):
        return os.getpid()


@atask(resume=True, max_attempts=20)
async def tree(key: str, depth: int, width: int, pause: float) -> int:
    """The number of leaves below it: `width` branches at a time, each of which is a row of two calls."""
    with _recorder().run(key):
        if depth == 0:
            await asyncio.sleep(pause)
            return 1

        async def branch(number: int) -> int:
            first = await tree(f"{key}.{number}a", depth - 1, width, pause)
            await atasks.sleep(pause)
            return first + await tree(f"{key}.{number}b", depth - 1, width, pause)

        return sum(await asyncio.gather(*(branch(number) for number in range(width))))


Shape = dict[str, Any]
"""A tree of calls: its `kind`, and the trees `below`, or the `value` of a leaf after a `pause`."""
TWO = Limit("resuming-two", at_once=2)
EQUAL = 3
"""Calls that a run makes alike."""


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
    match shape["kind"]:
        case "same" | "equal":
            return EQUAL * sum(values)
        case "caught":
            return sum(values) - 1
        case "once":
            return sum(values) + 7
    return sum(values)


@atask(max_attempts=20)
async def leaf(key: str, value: int, pause: float) -> int:
    """The value."""
    with _recorder().run(key):
        await asyncio.sleep(pause)
        return value


@atask(max_attempts=20)
async def failing(key: str) -> int:
    """Raises."""
    with _recorder().run(key):
        raise LookupError(key)


@atask(max_attempts=20, retry=Retry(on=ConnectionError, wait=0.01, jitter=0.0))
async def flaky(key: str) -> int:
    """Nothing, at the second try."""
    tries = current_call().try_
    with _recorder().run(f"{key}-{tries}"):
        if tries == 1:
            raise ConnectionError(key)
        return 0


@atask(max_attempts=20, limit=TWO)
async def held(key: str) -> int:
    """Nothing, two at a time."""
    with _recorder().run(key):
        await asyncio.sleep(0.02)
        return 0


@atask(resume=True, max_attempts=20)
async def grow(key: str, shape: Shape) -> int:
    """The value of the tree, every call of which is a step."""
    with _recorder().run(key):
        return await _grown(key, shape)


@atask(resume=True, max_attempts=20, retry=Retry(on=ConnectionError, wait=0.01, jitter=0.0))
async def twice(key: str, shape: Shape) -> int:
    """Grow as `grown` does; the first try fails when all of it is done."""
    with _recorder().run(f"{key}.try-{current_call().try_}"):
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
    total = await _step(key, shape["kind"])
    for each in below:
        total += await grow(*each)
    return total


async def _step(key: str, kind: str) -> int:
    """A step of that kind, and its share of the value."""
    match kind:
        case "caught":
            try:
                return await failing(f"{key}.f")
            except LookupError:
                return -1
        case "tried":
            return await flaky(f"{key}.t")
        case "limited":
            return await held(f"{key}.h")
        case "once":
            seven = await atasks.once(_seven, key)
            _recorder().safe(f"{key}.o")
            return seven
        case "sleep":
            await atasks.sleep(0.2)
    return 0


def _named(task: Any, key: str, shape: Shape, number: int) -> Any:
    """One of several calls of the same shape."""
    return task(f"{key}.{number}", shape)


def _seven(key: str) -> int:
    with _recorder().run(f"{key}.o"):
        return 7
