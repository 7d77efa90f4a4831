"""A call that kills every worker that takes it, among others that are innocent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from atasks import WorkerLost
from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.tasks import crash, echo, gated
from tests.faults.workers import WorkerProcess


async def poison(
    history: History,
    gate: Path,
    how: str,
    workers: Sequence[WorkerProcess],
    replace: Callable[[], Awaitable[object]],
    seconds: float,
) -> None:
    """Make such a call among a hundred others, while two workers have room for all; `replace` starts another.

    It ends in `WorkerLost` after three attempts, each of which has killed a worker; the others have their values.
    """
    innocent = history.start(50, gated, str(gate))
    await until(lambda: history.started() == 50, "the innocent calls run")
    killer = asyncio.create_task(history.call(crash, how))
    dead = 0
    async with asyncio.timeout(seconds):
        while not killer.done():
            for _ in range(dead, sum(not worker.running for worker in workers)):
                dead += 1
                await replace()
            if dead == 2 and not gate.exists():  # its last attempt waits for theirs, which are one at a time too
                gate.touch()
                innocent += history.start(50, echo)
            await asyncio.wait([killer], timeout=0.05)
    await settled(asyncio.gather(*innocent), "the innocent calls")
    ended = killer.result()
    assert isinstance(ended.error, WorkerLost)
    assert ended.error.attempts == 3
    await until(lambda: sum(not worker.running for worker in workers) == 3, "three workers are dead")
    assert [run.attempt for run in history.runs(ended.key)] == [1, 2, 3]
    assert history.errors() == {"value": 100, "WorkerLost": 1}
    history.check()
