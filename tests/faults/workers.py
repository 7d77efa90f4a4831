"""Worker processes that a test may kill.

As their program it imports nothing that an older version of atasks does not have.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import atasks
from tests.brokers.base import Broker, Queue
from tests.faults.history import Recorder
from tests.faults.processes import Process
from tests.waiting import DEADLINE, wait_until

__all__ = ["Fleet", "WorkerProcess"]

READY = "ready to serve\n"


class WorkerProcess(Process):
    """`python -m tests.faults.workers`, serving the atasks of `tests.faults.tasks`."""

    def __init__(self, record: Path, arguments: dict[str, Any], sources: Path | None = None) -> None:
        super().__init__("tests.faults.workers", str(record), json.dumps(arguments), sources=sources)

    def wait_ready(self) -> None:
        """Return when it serves."""
        wait_until(lambda: READY in self.output or not self.running, f"worker {self.pid} ready")
        assert READY in self.output, f"worker {self.pid} ended at its start:\n{self.output}"

    def stop(self) -> int:
        """SIGTERM: it drains; returns its exit code."""
        self.process.terminate()
        return self.wait()


class Fleet:
    """The workers of a test: same prefix, same record."""

    def __init__(self, broker: Broker, prefix: str, record: Path) -> None:
        self.broker = broker
        self.prefix = prefix
        self.record = record
        self.workers: list[WorkerProcess] = []

    def start(
        self,
        count: int = 1,
        *,
        url: str | Sequence[str] | None = None,
        concurrency: int = 100,
        max_parked: int = 50_000,
        grace: float = 30.0,
        caller_patience: float = 30.0,
        wait: bool = True,
        sources: Path | None = None,
        **options: Any,
    ) -> list[WorkerProcess]:
        """Start `count` workers, which serve when this returns unless `wait` is false. `caller_patience` is for
        how many seconds a caller may be away; `sources` is for another atasks than this one; `options` are those
        of the transport, and `alone_patience` for how many seconds a last attempt waits for other calls to end."""
        arguments = {
            "url": url or self.broker.url,
            "prefix": self.prefix,
            "concurrency": concurrency,
            "max_parked": max_parked,
            "grace": grace,
            "caller_patience": caller_patience,
            **options,
        }
        started = [WorkerProcess(self.record, arguments, sources) for _ in range(count)]
        self.workers += started
        for worker in started if wait else ():
            worker.wait_ready()
        return started

    def start_one(self, **options: Any) -> WorkerProcess:
        (worker,) = self.start(1, **options)
        return worker

    def queues(self) -> list[Queue]:
        """The work queues, solo and dead-letter queues included."""
        beginnings = (f"{self.prefix}.q.", f"{self.prefix}.dead")
        return [queue for queue in self.broker.queues() if queue.name.startswith(beginnings)]

    async def quiet(self) -> None:
        """Return when no work queue holds a message, ready or unacknowledged."""

        def loaded() -> list[Queue]:
            return [queue for queue in self.queues() if queue.messages]

        deadline = time.monotonic() + DEADLINE
        while left := await asyncio.to_thread(loaded):
            assert time.monotonic() < deadline, f"messages are left in work queues: {left}"
            await asyncio.sleep(0.05)

    def logs(self) -> str:
        """The output of every worker."""
        return "".join(f"--- worker {worker.pid}\n{worker.output}" for worker in self.workers)

    def close(self) -> None:
        """End what still runs."""
        for worker in self.workers:
            worker.close()


@contextlib.asynccontextmanager
async def _recorder(path: Path) -> AsyncIterator[Recorder]:
    recorder = Recorder(path)
    yield recorder
    recorder.close()


def found(name: str, here: str, before: str) -> Any:
    """The class of the AMQP transport, which is in another module in older versions of atasks."""
    package = "atasks.transport.backends.amqp"
    module = here if importlib.util.find_spec(f"{package}.{here.partition('.')[0]}") is not None else before
    return getattr(importlib.import_module(f"{package}.{module}"), name)


async def serve(
    record: Path,
    caller_patience: float,
    module: str = "tests.faults.tasks",
    alone_patience: float | None = None,
    **options: Any,
) -> None:
    """Serve until a signal; drain at the first one, leave at once at the second."""
    if alone_patience is not None:
        vars(importlib.import_module("atasks.worker.worker"))["ALONE_PATIENCE"] = alone_patience
    watch = found("CallerWatch", "worker.caller_watch", "callers")
    watch.patience = caller_patience
    watch.pause = min(watch.pause, caller_patience / 3)
    found("Attempts", "worker.attempts", "attempts").patience = caller_patience
    begin = getattr(importlib.import_module(module), "begin", None)  # its atasks are registered
    if begin is not None:
        begin(record)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    def on_question() -> None:
        for task in asyncio.all_tasks(loop):
            task.print_stack(file=sys.stderr)
        sys.stderr.flush()

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    loop.add_signal_handler(signal.SIGUSR1, on_question)  # what does it wait for?
    async with atasks.serve(lifespan=lambda: _recorder(record), **options) as worker:
        print(READY, end="", flush=True)
        ended = asyncio.create_task(worker.wait())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if ended.done():
            await ended
        else:
            ended.cancel()


def set_clock(ahead: float) -> None:
    """Have this process take it for so many seconds later than it is."""
    right = time.time
    if ahead:
        time.time = lambda: right() + ahead


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("options", type=json.loads)
    arguments = parser.parse_args()
    set_clock(arguments.options.pop("clock", 0.0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("atasks").setLevel(logging.DEBUG)  # says which calls were delivered before, or sent again
    asyncio.run(serve(arguments.record, **arguments.options))


if __name__ == "__main__":
    main()
