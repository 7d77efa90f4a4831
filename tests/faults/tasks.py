"""The atasks of these tests. Each run is put on record before it does anything else.

It imports nothing that an older version of atasks does not have: workers of both serve them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import atasks
from atasks import atask, current_call
from tests.faults.history import Recorder

__all__ = [
    "CRASHES",
    "Failed",
    "block",
    "boom",
    "chain",
    "counted_to",
    "counting",
    "crash",
    "doomed",
    "echo",
    "fan",
    "fib",
    "gated",
    "inner_time_left",
    "opened",
    "parent",
    "passed",
    "passed_item",
    "passed_once",
    "relayed",
    "reporting",
    "time_left",
    "work",
]


class Failed(Exception):
    """Raised by `boom`."""


def _recorder() -> Recorder:
    recorder = current_call().state
    assert isinstance(recorder, Recorder), "workers of these tests have a recorder as their state"
    return recorder


@atask
async def reporting(gate: str) -> int:
    """Reports 1 of 2, and 2 of 2 when there is a gate; gives its attempt."""
    call = current_call()
    call.report(1, 2)
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
    call.report(2, 2)
    return call.attempt or 0


@atask
async def echo(key: str, nonce: str) -> tuple[str, str, int]:
    """The arguments, and the process that ran it."""
    with _recorder().run(key):
        return key, nonce, os.getpid()


@atask
async def work(key: str, nonce: str, seconds: float) -> tuple[str, str, int]:
    """Echo after so many seconds."""
    with _recorder().run(key):
        await asyncio.sleep(seconds)
        return key, nonce, os.getpid()


@atask
async def gated(key: str, nonce: str, gate: str) -> tuple[str, str, int]:
    """Echo once the file `gate` exists."""
    with _recorder().run(key):
        while not os.path.exists(gate):  # another process makes it
            await asyncio.sleep(0.02)
        return key, nonce, os.getpid()


@atask
async def parent(key: str, nonce: str, gate: str) -> tuple[str, str, int]:
    """Do what `gated` does, parked meanwhile."""
    with _recorder().run(key):
        await opened(gate)
        return key, nonce, os.getpid()


@atask
async def opened(gate: str) -> None:
    """Return once the file `gate` exists."""
    while not os.path.exists(gate):
        await asyncio.sleep(0.02)


@atask
async def time_left(key: str, nonce: str) -> tuple[str, str, int, float]:
    """Echo, and tell the seconds that are left to the call, or to a call that it makes: the lesser one."""
    with _recorder().run(key):
        left = await inner_time_left()
        deadline = current_call().deadline
        assert deadline is not None
        return key, nonce, os.getpid(), min(left, deadline - asyncio.get_running_loop().time())


@atask
async def inner_time_left() -> float:
    """The seconds that are left to it."""
    deadline = current_call().deadline
    assert deadline is not None
    return deadline - asyncio.get_running_loop().time()


@atask(window=8)
async def counting(key: str, count: int, gate: str) -> AsyncIterator[tuple[int, int]]:
    """Numbers, each with the process that yields it; the second half once the file `gate` exists."""
    with _recorder().run(key):
        for number in range(count):
            while number == count // 2 and not os.path.exists(gate):
                await asyncio.sleep(0.02)
            yield number, os.getpid()


@atask
async def block(key: str, nonce: str, seconds: float) -> tuple[str, str, int]:
    """Do what `work` does; nothing else runs in its worker meanwhile."""
    with _recorder().run(key):
        time.sleep(seconds)  # noqa: ASYNC251  # what an atask should not do
        return key, nonce, os.getpid()


@atask
async def passed(gates: str, number: int, item: list[int]) -> list[int]:
    """A stage: the item with the number behind it, once the file `number` is in the directory `gates`."""
    with _recorder().run(f"stage-{number}"):
        while not os.path.exists(os.path.join(gates, str(number))):
            await asyncio.sleep(0.02)
        return [*item, number]


@atask(max_attempts=20)
async def counted_to(number: int) -> list[int]:
    """The numbers below it."""
    return list(range(number))


@atask(max_attempts=20)
async def passed_item(gates: str, stage: str, item: int) -> int:
    """A stage of many items: the item, once the file `stage-item` is in the directory `gates`."""
    with _recorder().run(f"{stage}-{item}"):
        while not os.path.exists(os.path.join(gates, f"{stage}-{item}")):
            await asyncio.sleep(0.02)
        return item


@atask
async def passed_once(gates: str, number: int, item: list[int]) -> list[int]:
    """Pass the item on as `passed` does, at most once."""
    return await passed.local(gates, number, item)


@atask
async def boom(key: str, nonce: str) -> tuple[str, str, int]:
    """Fails."""
    with _recorder().run(key):
        raise Failed(key, nonce)


@atask
async def flaky(good: int) -> int:
    """Fails before try number `good`, whose number is the result."""
    if current_call().try_ < good:
        raise RuntimeError("not yet")
    return current_call().try_


@atask
async def doomed(key: str, nonce: str, gate: str) -> tuple[str, str, int]:
    """Ends its worker once the file `gate` exists."""
    with _recorder().run(key):
        while not os.path.exists(gate):
            await asyncio.sleep(0.02)
        CRASHES["kill"]()
        return key, nonce, os.getpid()


CRASHES = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
}


@atask
async def crash(key: str, nonce: str, how: str) -> tuple[str, str, int]:
    """Ends its worker."""
    with _recorder().run(key):
        CRASHES[how]()
        return key, nonce, os.getpid()


@atask
async def fib(n: int) -> int:
    """Two awaited calls on each level."""
    with _recorder().counted():
        if n < 2:
            return n
        first = fib(n - 1)
        with _recorder().parked():
            left = await first
            return left + await fib(n - 2)


@atask
async def chain(depth: int) -> int:
    """Make `depth` calls in one another."""
    with _recorder().counted():
        if depth == 0:
            return 0
        with _recorder().parked():
            return 1 + await chain(depth - 1)


@atask
async def leaf(number: int) -> int:
    """The number."""
    with _recorder().counted():
        return number


@atask
async def fan(width: int) -> int:
    """The sum of as many calls at once."""
    with _recorder().counted(), _recorder().parked():
        return sum(await asyncio.gather(*(leaf(number) for number in range(width))))


@atask
async def relayed(queues: list[str]) -> list[str]:
    """Tell where the sources of this worker are, and of those that serve these queues, each of which calls the
    next."""
    here = str(Path(atasks.__file__).parent.parent)
    with _recorder().counted():
        return [here, *(await relayed.options(queue=queues[0])(queues[1:]) if queues else [])]
