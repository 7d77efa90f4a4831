"""Atasks that resume. Each step is put on record by the worker that runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import atasks
from atasks import atask, current_call
from tests.faults.history import Recorder

__all__ = ["fanned", "given_up", "once_in_a_row", "row", "step", "tree"]


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
    """As many steps, one after the other; behind each it waits for its gate."""
    with _recorder().run(key):
        made: list[Any] = []
        for number, gate in enumerate(gates):
            made.append(await step(f"{key}-{number}"))
            made.append(await atasks.once(os.getpid))
            await opened(gate)
        return made


@atask(resume=True, max_attempts=20)
async def fanned(key: str, queue: str, gates: list[str], delivery: Any = "at_least_once") -> list[int]:
    """As many steps at once, on this queue, each with its gate."""
    with _recorder().run(key):
        there = step.options(queue=queue, delivery=delivery)
        return await asyncio.gather(*(there(f"{key}-{number}", gate) for number, gate in enumerate(gates)))


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


@atask
async def items(key: str) -> AsyncIterator[int]:
    """Two items."""
    with _recorder().run(key):
        yield 1
        yield 2
