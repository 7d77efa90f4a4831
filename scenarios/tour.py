"""A tour of atasks in six steps.

    atasks run scenarios/tour.py                    all in this process: no broker needed
    atasks run scenarios/tour.py --mode server      or with RabbitMQ: in one terminal or in several,
    atasks run scenarios/tour.py --mode client      and in another one on the same host

An atask is a coroutine function with `@atask` above it. Awaiting it runs it on a worker; all the rest is asyncio
as you know it. First come the atasks, then the steps: the tour shows the code of each one and what it printed.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from tempfile import NamedTemporaryFile
from typing import IO, Any

from atasks import CallTimeout, atask


@atask
async def add(a: int, b: int) -> int:
    return a + b


@atask
async def divide(a: float, b: float) -> float:
    return a / b


@atask
async def fibonacci(n: int) -> int:
    if n < 2:
        return n
    return sum(await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2)))


@atask
async def keep_diary(diary: str) -> None:
    write(diary, "I began")
    try:
        await asyncio.sleep(3600)
    finally:
        write(diary, "I was stopped, and have cleaned up")


async def a_value() -> None:
    """An await gives the value that the atask returned on a worker."""
    print(await add(1, 2))


async def an_exception() -> None:
    """Or it raises what the atask raised: the same class, with the worker's traceback as its cause."""
    try:
        await divide(1, 0)
    except ZeroDivisionError as error:
        print(repr(error), essence(error.__cause__), sep="\n")


async def many_at_once() -> None:
    """Calls are coroutines, so asyncio composes them: a thousand at once."""
    sums = await asyncio.gather(*(add(n, n) for n in range(1000)))
    print(len(sums), "results, from", sums[0], "to", sums[-1])


async def calls_that_call() -> None:
    """An atask may await atasks, itself included: this makes 465 calls. One that waits uses no slot."""
    print(await fibonacci(12))


async def a_timeout() -> None:
    """A call that takes too long ends on time, at both sides."""
    try:
        await keep_diary.options(timeout=0.2)(os.devnull)
    except CallTimeout as error:
        print("CallTimeout, a kind of TimeoutError:", isinstance(error, TimeoutError))


async def a_cancellation() -> None:
    """Cancelling the await cancels the run on its worker, which gets to execute its `finally`."""
    with NamedTemporaryFile("r") as diary:
        call = asyncio.create_task(keep_diary(diary.name))
        print(await next_line(diary))
        call.cancel()
        print(await next_line(diary))


async def next_line(diary: IO[str]) -> str:
    """Wait until the worker has written one more."""
    line = ""
    async with asyncio.timeout(30):
        while not line:
            await asyncio.sleep(0.01)
            line = diary.readline()
    return line.rstrip()


def write(diary: str, line: str) -> None:
    with open(diary, "a") as file:
        file.write(f"{line}\n")


def essence(traceback: object) -> str:
    """A traceback without its directories and the marks under its lines."""
    lines = (line for line in str(traceback).splitlines() if line.strip(" ~^"))
    return "\n".join(line.replace(os.path.join(os.path.dirname(__file__), ""), "") for line in lines)


async def aiomain(mode: str = "loopback", **options: Any) -> None:
    """`atasks run` calls this: in server mode too, where there is nothing to do but to serve."""
    if mode == "server":
        return
    steps = (a_value, an_exception, many_at_once, calls_that_call, a_timeout, a_cancellation)
    for number, step in enumerate(steps, 1):
        _, title, code = inspect.getsource(step).split('"""')
        print(f"{number}. {title}\n{code.rstrip()}")
        await step()
        print()
