"""Blocking functions in processes.

A call in a process really stops when it is cancelled or times out: the process is killed, and another one takes
its place. A process that dies by itself costs its call an attempt, and no other call anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from atasks.outlast import apart
from atasks.wire import AT_MOST_ONCE, Reply, Status, describe
from atasks.worker.execution import status
from atasks.worker.executors.executor_process import ExecutorProcess, Lost
from atasks.worker.executors.frames import ProcessRequest
from atasks.worker.executors.references import Reference, refer
from atasks.worker.held_call import HeldCall

if TYPE_CHECKING:
    from atasks.codecs.base import Codec
    from atasks.definitions import BaseTask
    from atasks.middleware import AroundRuns

__all__ = ["ProcessPool"]

logger = logging.getLogger("atasks.worker")


class NotStarted(Exception):
    """There is no process to serve the call."""


class ProcessPool:
    """At most `size` processes, which live as long as the worker, and calls that wait for one to start: no more
    are here at once."""

    def __init__(self, size: int, setup: str | None = None) -> None:
        """`setup` names the function that a process calls first; None: the one that prepared this process."""
        self.size = size
        self._setup = setup
        self._count = 0
        """Processes that start, live, or were killed and have not ended yet."""
        self._idle: list[ExecutorProcess] = []
        self._alive: set[ExecutorProcess] = set()
        self._waiting: deque[asyncio.Future[ExecutorProcess]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._references: dict[BaseTask[..., Any], Reference] = {}
        self._codec: Codec | None = None
        self._around: AroundRuns | None = None
        self._closed = False

    async def serve(self, run: HeldCall, task: BaseTask[..., Any]) -> Reply:
        """The reply of a process. A call that kills its process is tried again in another one, as often as its
        delivery and `max_attempts` permit, and ends in `WorkerLost` then."""
        worker = run.worker
        self._codec, self._around = worker.router.codec, task._space.around_runs
        reference = self._references.get(task)
        if reference is None:
            reference = self._references[task] = refer(task)
        while True:
            try:
                process = await self._take()
            except NotStarted as error:
                return status(run, Status.FAILED, f"{describe(run.call)}: {error}")
            try:
                reply = await process.ask(
                    ProcessRequest(
                        run.call, reference, worker.id, run.deadline, worker.transport.max_payload, run.queue
                    ),
                    run.tell,
                )
            except Lost as lost:
                call = run.call
                if call.delivery == AT_MOST_ONCE or call.attempt >= call.max_attempts:
                    what = f"{describe(call)}: its process died ({lost}) in attempt {call.attempt}"
                    return status(run, Status.WORKER_LOST, what)
                logger.warning("%s: its process died (%s); it is tried again in another one", describe(call), lost)
                run.call = replace(call, attempt=call.attempt + 1)
            except BaseException:
                process.kill()
                raise
            else:
                self._give(process)
                return reply

    async def close(self) -> None:
        """End all processes, and return when they have ended. No call may wait or run."""
        self._closed = True
        while self._starting:
            await asyncio.wait(self._starting)
        idle, self._idle = self._idle, []
        for process in self._alive - set(idle):
            process.kill()
        await asyncio.gather(*(process.leave() for process in self._alive))

    async def _take(self) -> ExecutorProcess:
        """A process that is ready, in the order of asking."""
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
        waiter: asyncio.Future[ExecutorProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._grow()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # The waiter got a process and was cancelled in the same turn: pass the process on.
                self._give(waiter.result())
            raise

    def _grow(self) -> None:
        """Start a process, if a call waits for one and there may be another one."""
        waiting = sum(not waiter.done() for waiter in self._waiting)
        if len(self._starting) < waiting and self._count < self.size and not self._closed:
            self._count += 1
            task = apart(self._start(), "atasks process start")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self) -> None:
        """Start a process for whoever waits: it is not cancelled with the call that asked for it."""
        codec = self._codec
        assert codec is not None
        try:
            process = await ExecutorProcess.start(codec, self._around, self._setup)
        except Exception as error:  # no memory, no interpreter, a codec or a middleware that cannot be pickled
            self._count -= 1
            waiter = self._next()
            if waiter is not None:
                text = f"{type(error).__name__}: {error}"
                waiter.set_exception(NotStarted(f"no process could be started for it ({text})"))
            self._starting.discard(asyncio.current_task())
            self._grow()
            return
        self._alive.add(process)
        process.ended.add_done_callback(lambda _: self._ended(process))
        self._give(process)

    def _give(self, process: ExecutorProcess) -> None:
        """A process is free: for the call that has waited longest, or for later."""
        if not process.alive:
            return
        waiter = self._next()
        if waiter is None:
            self._idle.append(process)
        else:
            waiter.set_result(process)

    def _next(self) -> asyncio.Future[ExecutorProcess] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _ended(self, process: ExecutorProcess) -> None:
        self._alive.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        self._count -= 1
        self._grow()
