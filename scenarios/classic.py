"""The classic first example: atasks that await atasks, one after the other and side by side.

atasks run scenarios/classic.py
atasks run scenarios/classic.py --mode server        and, in another terminal, --mode client
"""

from __future__ import annotations

import asyncio
from typing import Any

from atasks import atask


@atask
async def task_one(value: int) -> int:
    await asyncio.sleep(0.01)  # as if it asked a database
    return value + 1


@atask
async def task_two(value: int) -> int:
    await asyncio.sleep(0.01)
    return value * 2


@atask
async def request_sequence(value: int) -> int:
    """The second call needs the result of the first."""
    one = await task_one(value)
    return await task_two(one)


@atask
async def request_parallel(value: int) -> tuple[int, int]:
    """Neither call needs the other: they run at the same time, on two workers if there are two."""
    one, two = await asyncio.gather(task_one(value), task_two(value))
    return one, two


async def aiomain(**options: Any) -> None:
    """`options` has the mode and the URL of the command line, and whatever `-o key=value` adds."""
    if options["mode"] == "server":
        print("This worker serves task_one, task_two, request_sequence and request_parallel.", flush=True)
        return

    sequence = await request_sequence(5)
    print("one after the other:", sequence)
    assert sequence == 12

    parallel = await request_parallel(5)
    print("side by side:", parallel)
    assert parallel == (6, 10)

    sequence, parallel = await asyncio.gather(request_sequence(1), request_parallel(1))
    print("both at once:", sequence, parallel)
    assert (sequence, parallel) == (4, (2, 2))
