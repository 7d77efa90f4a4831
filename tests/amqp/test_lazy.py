"""The connection that calls open by themselves, over RabbitMQ."""

# Private attributes: `Router._space`: what `connect_lazily` has said is taken back, which a program cannot do.

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import atasks
from atasks import atask
from atasks.testing import soon, until
from tests.broker import Broker

pytestmark = pytest.mark.usefixtures("amqp_leaks")

numbers: list[int] = []


@atask(name="tests.lazy.note", keep=0)
async def note(number: int) -> None:
    numbers.append(number)


PROGRAM = """
    import sys, atasks
    from atasks import atask

    @atask(name="tests.lazy.note", keep=0)
    async def note(number: int) -> None: ...

    url, prefix = sys.argv[1:]
    atasks.connect_lazily(url, prefix=prefix)
    for number in range(100):
        note.submit.soon(number)
"""


async def test_a_program_that_ends_at_once_loses_nothing(broker: Broker, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(dedent(PROGRAM))
    async with atasks.serve(broker.url, prefix=prefix):
        pass  # the queue is there
    root = str(Path(atasks.__file__).parents[1])
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "program.py", broker.url, prefix],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "PYTHONASYNCIODEBUG": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    numbers.clear()
    async with atasks.serve(broker.url, prefix=prefix):
        await until(lambda: len(numbers) == 100, "the calls of the program that has ended")
    assert sorted(numbers) == [*range(100)]


async def test_every_event_loop_and_thread_uses_it(broker: Broker, prefix: str) -> None:
    @atask(name="tests.lazy.double")
    async def double(number: int) -> int:
        return 2 * number

    async with atasks.serve(broker.url, prefix=prefix):
        lazy = atasks.connect_lazily(broker.url, prefix=prefix)
        try:
            loops = [asyncio.to_thread(asyncio.run, _double(double, n)) for n in range(5)]
            threads = [asyncio.to_thread(double.sync, n) for n in range(5)]
            assert await soon(asyncio.gather(*loops, *threads)) == [0, 2, 4, 6, 8] * 2
            handle = await asyncio.to_thread(asyncio.run, _submitted(double, 21))
            assert await soon(handle) == 42
        finally:
            await asyncio.to_thread(lazy.close)
            atasks.get_router()._space.lazy = None


async def _double(task: atasks.ATask[[int], int], number: int) -> int:
    return await task(number)


async def _submitted(task: atasks.ATask[[int], int], number: int) -> atasks.Handle[int]:
    return await task.submit(number)
