"""Atasks that worker processes of these tests run, in a namespace of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

from atasks import atask, current_call

__all__ = [
    "NAMESPACE",
    "asleep",
    "block",
    "count",
    "crash",
    "depth",
    "echo",
    "fib",
    "hold",
    "interrupted",
    "make",
    "outer",
    "pid",
    "take",
    "touch",
]

NAMESPACE = "local-jobs"


@atask(namespace=NAMESPACE)
async def pid() -> int:
    """Which process runs it."""
    return os.getpid()


@atask(namespace=NAMESPACE)
async def echo(value: object) -> object:
    """The value."""
    return value


@atask(namespace=NAMESPACE)
async def crash() -> None:
    """Kills its process."""
    os.kill(os.getpid(), signal.SIGKILL)


@atask(namespace=NAMESPACE, delivery="at_most_once")
async def crash_awaiting(mark: str) -> None:
    """Kills its process while it awaits a call that another one runs."""

    async def crash_then() -> None:
        while not Path(mark).exists():
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    await asyncio.gather(asleep(mark), crash_then())


@atask(namespace=NAMESPACE)
async def hold(mark: str, gate: str) -> tuple[int, int | None]:
    """Makes a file whose name begins with `mark`; returns its process and attempt once the file `gate` exists."""
    call = current_call()
    Path(f"{mark}.{os.getpid()}.{call.attempt}.{call.id}").touch()
    while not os.path.exists(gate):  # another process makes it
        await asyncio.sleep(0.02)
    return os.getpid(), call.attempt


@atask(namespace=NAMESPACE)
async def outer(mark: str, gate: str) -> tuple[int, int | None]:
    """Awaits `hold`."""
    return await hold(mark, gate)


@atask(namespace=NAMESPACE)
async def asleep(mark: str) -> None:
    """Makes a file, and another one when it is cancelled."""
    Path(mark).touch()
    try:
        await asyncio.Event().wait()
    finally:
        Path(f"{mark}.cancelled").touch()


@atask(namespace=NAMESPACE)
async def touch(mark: str) -> None:
    """Makes a file."""
    Path(mark).touch()


@atask(namespace=NAMESPACE)
async def block(mark: str) -> None:
    """Makes a file, and never lets the event loop of its process go on."""
    Path(mark).touch()
    while True:
        time.sleep(0.01)  # noqa: ASYNC251 - this is what it is about


@atask(namespace=NAMESPACE)
async def make(size: int) -> bytes:
    """So many bytes."""
    return b"x" * size


@atask(namespace=NAMESPACE)
async def take(content: bytes) -> int:
    """Return the number of bytes."""
    return len(content)


@atask(namespace=NAMESPACE)
async def fib(n: int) -> int:
    """Two awaited calls on each level."""
    if n < 2:
        return n
    return sum(await asyncio.gather(fib(n - 1), fib(n - 2)))


@atask(namespace=NAMESPACE)
async def depth(n: int) -> int:
    """Make `n` calls in one another."""
    return 0 if n == 0 else 1 + await depth(n - 1)


@atask(namespace=NAMESPACE)
async def count(items: int, mark: str) -> AsyncIterator[int]:
    """The numbers up to `items`; after the first half it goes on once the file `mark` exists."""
    for number in range(items):
        while number == items // 2 and not os.path.exists(mark):
            await asyncio.sleep(0.02)
        yield number


@atask(namespace=NAMESPACE)
def interrupted(number: int) -> int:
    """Return how a program ends that is started here and gets this signal: the code of its process."""
    with subprocess.Popen(["sleep", "10"]) as program:
        program.send_signal(number)
        return program.wait()
