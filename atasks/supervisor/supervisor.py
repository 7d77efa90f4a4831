"""Keeps a number of worker processes running: starts them, replaces those that die, ends them.

    async with Supervisor([sys.executable, "-m", "my_worker"], 4) as supervisor:
        await supervisor.start()            # returns when all four serve
        ...
        await supervisor.stop(grace=30)     # they drain

The command is run as it is, once per process, so every process is a fresh interpreter. It finds its supervisor
with `Tether.inherited()`, says when it is ready, and drains when it is released: see `atasks.supervisor.tether`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from atasks.errors import WorkersFailed
from atasks.outlast import shield
from atasks.pauses import pauses
from atasks.supervisor.process import Hooks, WorkerProcess
from atasks.tracking import WorkerCounts, snapshots

__all__ = ["Supervisor"]

logger = logging.getLogger("atasks.supervisor")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
"""Seconds between a death and the next start: they double from death to death, less up to a half at random."""
STEADY: Final = 10.0
"""Seconds of serving after which the next death counts as the first one."""
SETTLED: Final = 5.0
"""Seconds of serving before which a death without a call in hand counts as one at the start."""
EARLY_DEATHS: Final = 5
"""Deaths at the start, in a row and with no settled worker, after which the supervisor gives up."""


class Supervisor:
    """Keeps `count` processes of a command serving. Belongs to the event loop that starts it.

    A process that dies is replaced, after a pause that grows from death to death; the log says how it died and
    which calls it was running. A process that wants to be replaced (`Tether.retire`) drains once its replacement
    serves.

    Args:
        command: The program and its arguments.
        count: Processes that serve at a time.
        env: Their environment. None: that of this process.
        on_output: Called with the number of a worker and whole lines that it wrote to stderr. None: workers share
            the stderr of this process.
        on_report: Called with the number of a worker, and the kind and the values of what it said with
            `Tether.report`. Numbers count from 1.
        on_end: Called with the process id of one that has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[int, bytes], None] | None = None,
        on_report: Callable[[int, str, list[Any]], None] | None = None,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count={count}: at least 1")
        self.command = list(command)
        self.count = count
        self._env = env
        self._hooks = Hooks(on_report or (lambda number, kind, values: None), on_output, self._ended)
        self._on_end = on_end
        self._processes: set[WorkerProcess] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._served = False
        self._early_deaths = 0
        snapshots.include(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(grace=0)

    @property
    def processes(self) -> list[WorkerProcess]:
        """The processes that live now: a replaced one is among them until it has drained."""
        return sorted(self._processes, key=lambda process: (process.number, process.pid))

    def counts(self) -> list[WorkerCounts]:
        """Return the counts of all workers of its processes; see `atasks.tracking`. Reads memory that they share,
        and asks nobody."""
        return [worker for process in self.processes for worker in process.counts]

    # -- life

    async def start(self) -> None:
        """Start the processes, and return when all of them serve; again after `stop`.

        Raises WorkersFailed if one of them says that none could serve, or if they die faster than they start; none
        is left running then. If it is cancelled, the processes stay for `stop` to end: some may serve already.
        """
        loop = asyncio.get_running_loop()
        self._failed = failed = loop.create_future()
        self._served = False
        self._early_deaths = 0
        all_serve = [loop.create_future() for _ in range(self.count)]
        self._keepers = [
            asyncio.create_task(self._keep(number, serves), name=f"atasks keeper {number}")
            for number, serves in enumerate(all_serve, 1)
        ]
        for keeper in self._keepers:
            keeper.add_done_callback(self._check)
        while not failed.done() and not all(serves.done() for serves in all_serve):
            waiting = [serves for serves in all_serve if not serves.done()]
            await asyncio.wait([failed, *waiting], return_when=asyncio.FIRST_COMPLETED)
        if failed.done() and failed.exception() is not None:
            await self.stop(grace=0)
            await failed

    async def wait(self) -> None:
        """Return when it is stopped. Raises WorkersFailed when it gives up because they die faster than they
        start; processes that still live go on then, until `stop`."""
        if self._failed is None:
            raise RuntimeError("start() the supervisor first")
        await shield(self._failed)

    async def stop(self, grace: float) -> None:
        """Release all processes, and return when they have ended.

        Args:
            grace: Seconds after which those that live still are killed.
        """
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            keeper.cancel()
        if keepers:
            await asyncio.wait(keepers)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)
        for process in self._processes:
            process.release()
        ends = {process.ended for process in self._processes}
        try:
            if ends and grace > 0:
                await asyncio.wait(ends, timeout=grace)
                for process in self.processes:
                    logger.error(
                        "%s has not drained within %g s, and is killed %s",
                        _name(process),
                        grace,
                        process.describe_calls(),
                    )
        finally:
            self.kill()
        if ends:
            await asyncio.wait(ends)

    def kill(self) -> None:
        """Kill all processes at once. Also to be called by signal handlers."""
        for process in list(self._processes):
            process.kill()

    # -- one number

    async def _keep(self, number: int, serves: asyncio.Future[None]) -> None:
        """Have a process of this number serve, one after the other."""
        loop = asyncio.get_running_loop()
        serving: WorkerProcess | None = None
        waits = pauses(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            process = await self._spawn(number)
            if process is not None and await shield(process.ready):
                self._served = True
                if not serves.done():
                    serves.set_result(None)
                if serving is not None:
                    serving.release()
                serving = process
                changes: list[asyncio.Future[Any]] = [process.ended, process.retiring]
                await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
                if not process.ended.done():
                    logger.info("%s is to be replaced: %s", _name(process), process.retiring.result())
                    continue
                if loop.time() - process.since >= STEADY:
                    waits = pauses(FIRST_PAUSE, LONGEST_PAUSE)
            await asyncio.sleep(next(waits))

    async def _spawn(self, number: int) -> WorkerProcess | None:
        try:
            env = os.environ if self._env is None else self._env
            process = await WorkerProcess.spawn(self.command, number, env, self._hooks)
        except OSError as error:  # no such command, or no memory or file descriptors left
            reason = f"worker {number} cannot be started ({error})"
            logger.warning("%s; it is tried again", reason)
            self._count_early_death(reason)
            return None
        self._processes.add(process)
        return process

    def _ended(self, process: WorkerProcess) -> None:
        """A process is gone: say so, unless it was to go, and see whether to give up."""
        self._processes.discard(process)
        snapshots.keep(process.counts)
        if self._on_end is not None:
            self._on_end(process.pid)
        how = f"{_name(process)} {process.describe_end()}"
        if process.released:
            logger.info("%s, having been told to end", how)
            return
        if process.failure is not None and not self._served:
            self._fail(WorkersFailed(*process.failure))
            return
        if process.ready.result() or process.ran_calls:  # calls may come before it has said that it is ready
            what = f" {process.describe_calls()}"
        else:
            what = f", {'before it could serve' if process.failure is None else process.failure[0]}"
        logger.warning("%s%s; a new one takes its place", how, what)
        served = process.ready.result() and asyncio.get_running_loop().time() - process.since >= SETTLED
        if served or process.ran_calls:
            self._early_deaths = 0
        else:
            self._count_early_death(how)

    def _count_early_death(self, how: str) -> None:
        now = asyncio.get_running_loop().time()
        settled = any(process.serving and now - process.since >= SETTLED for process in self._processes)
        self._early_deaths = 0 if settled else self._early_deaths + 1
        if self._early_deaths >= EARLY_DEATHS:
            self._fail(
                WorkersFailed(
                    f"{self._early_deaths} worker processes in a row died at their start, the last: {how}; "
                    "what they wrote to stderr before may say why"
                )
            )

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # nobody may be waiting for it

    def _check(self, keeper: asyncio.Task[None]) -> None:
        """A keeper never ends by itself: what it raises is an error of this module."""
        if not keeper.cancelled():
            error = keeper.exception()
            assert error is not None
            self._fail(error)


def _name(process: WorkerProcess) -> str:
    return f"worker {process.number} (pid {process.pid})"
