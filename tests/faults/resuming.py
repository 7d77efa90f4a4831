"""Atasks that resume. Each step is put on record by the worker that runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import atasks
from atasks import Limit, WorkerLost, atask, current_call, wire
from atasks.transport.backends.amqp.worker.replies import ReplyMessage
from atasks.transport.journals import lasts
from tests.faults.history import Recorder

__all__ = [
    "begin",
    "drawing",
    "fanned",
    "forgiving",
    "given_up",
    "guarded",
    "guarding",
    "late",
    "local",
    "once_in_a_row",
    "recorder",
    "rolling",
    "row",
    "step",
    "tree",
]


def begin(record: Path) -> None:
    """Have this worker put on record when its replies are safe."""
    recorder, confirmed = Recorder(record), ReplyMessage.confirmed

    def noted(message: ReplyMessage) -> None:
        confirmed(message)
        for reply in wire.decode(bytes(message.body)):  # it may be in pieces
            if isinstance(reply, wire.Reply) and lasts(reply):
                recorder.safe(reply.id)

    ReplyMessage.confirmed = noted  # type: ignore[method-assign]


def recorder() -> Recorder:
    """The recorder of this worker."""
    state = current_call().state
    assert isinstance(state, Recorder), "workers of these tests have a recorder as their state"
    return state


async def opened(gate: str) -> None:
    """Return when the file exists."""
    while gate and not os.path.exists(gate):  # another process makes it
        await asyncio.sleep(0.02)


@atask(max_attempts=20)
async def step(key: str, gate: str = "") -> int:
    """The process that ran it, once the file `gate` exists."""
    with recorder().run(key):
        await opened(gate)
        return os.getpid()


@atask(resume=True, max_attempts=20)
async def row(key: str, gates: list[str]) -> list[Any]:
    """Make one step per gate, one after the other; wait for the gate behind each."""
    with recorder().run(key):
        made: list[Any] = []
        for number, gate in enumerate(gates):
            made.append(await step(f"{key}-{number}"))
            made.append(await atasks.once(os.getpid))
            await opened(gate)
        return made


@atask(resume=True, max_attempts=20)
async def fanned(key: str, queue: str, gates: list[str], delivery: Any = "at_least_once") -> list[int]:
    """Make one step per gate, all at once, on this queue."""
    with recorder().run(key):
        there = step.options(queue=queue, delivery=delivery)
        return await asyncio.gather(*(there(f"{key}-{number}", gate) for number, gate in enumerate(gates)))


@atask(resume=True, max_attempts=20)
async def late(key: str, queue: str, gates: list[str], end: str) -> list[int]:
    """Two steps on this queue, for which each run waits at a gate of its own; then it waits for its end."""
    with recorder().run(key):
        await opened(gates[current_call().attempt - 1])
        made = [await step.options(queue=queue)(f"{key}-{number}") for number in range(2)]
        await opened(end)
        return made


@atask(resume=True, max_attempts=20)
async def gated(key: str, queue: str, gate: str, end: str) -> int:
    """One step on this queue, which waits for the gate; then the call waits for its end."""
    with recorder().run(key):
        made = await step.options(queue=queue)(f"{key}-0", gate)
        await opened(end)
        return made


@atask(max_attempts=20, limit=Limit("resuming-one", at_once=1))
async def guarded(key: str, gate: str = "") -> int:
    """Do the work of `step`, one call at a time."""
    with recorder().run(key):
        await opened(gate)
        return os.getpid()


@atask(resume=True, max_attempts=20)
async def guarding(key: str, queue: str, gate: str) -> list[int]:
    """Two such steps, on this queue: the second one waits until the first one has passed the gate."""
    there = guarded.options(queue=queue)
    with recorder().run(key):
        first = asyncio.create_task(there(f"{key}-0", gate))
        while not os.path.exists(f"{gate}-second"):
            await asyncio.sleep(0.02)
        return [await there(f"{key}-1"), await first]


@atask(resume=True, max_attempts=1)
async def given_up(key: str, queue: str, gate: str) -> int:
    """One step, which its worker does not live to see the end of."""
    with recorder().run(key):
        return await step.options(queue=queue)(f"{key}-0", gate)


@atask(resume=True, max_attempts=20)
async def forgiving(key: str, queue: str, gate: str, end: str) -> int:
    """Do as `gated`, with a step that may be lost: -1 then."""
    with recorder().run(key):
        try:
            made = await step.options(queue=queue, max_attempts=1)(f"{key}-0", gate)
        except WorkerLost:
            made = -1
            with recorder().run(f"{key}-lost"):
                pass
        await opened(end)
        return made


@atask(resume=True, max_attempts=20)
async def local(key: str, gate: str, end: str) -> int:
    """The process that did a local step once the gate was there; then the call waits for its end."""
    with recorder().run(key):
        made = await atasks.once(_behind, f"{key}-0", gate)
        await opened(end)
        return made


async def _behind(key: str, gate: str) -> int:
    with recorder().run(key):
        await opened(gate)
        return os.getpid()


def rolling(*steps: str) -> Callable[[str, str], Awaitable[list[str]]]:
    """Return code that makes these steps, and waits for a gate."""

    async def code(key: str, gate: str) -> list[str]:
        with recorder().run(key):
            for name in steps:
                await step(f"{key}-{name}")
            await opened(gate)
            return list(steps)

    return code


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
    with recorder().run(key):
        numbers: list[int] = []
        for number, gate in enumerate(gates):
            await step.options(queue=queue)(f"{key}-{number}")
            numbers.append(await atasks.once(_drawn, f"{key}-{number}"))
            await opened(gate)
        return numbers


def _drawn(key: str) -> int:
    with recorder().run(f"{key}-drawn"):
        return os.getpid()


@atask(resume=True, max_attempts=20)
async def tree(key: str, depth: int, width: int, pause: float) -> int:
    """The number of leaves below it: `width` branches at a time, each of which is a row of two calls."""
    with recorder().run(key):
        if depth == 0:
            await asyncio.sleep(pause)
            return 1

        async def branch(number: int) -> int:
            first = await tree(f"{key}.{number}a", depth - 1, width, pause)
            await atasks.sleep(pause)
            return first + await tree(f"{key}.{number}b", depth - 1, width, pause)

        return sum(await asyncio.gather(*(branch(number) for number in range(width))))
