"""What is measured and how: systems that echo bytes, under a fixed number of calls in flight.

A *system* is one way to get bytes echoed by another process (or, for loopback, by the same one). Every system of
a run is set up once and stays connected; the measurements then go round by round, A B C A B C, and a result is
the median over the rounds, because a neighbour's minute of noise should not decide for or against one of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

__all__ = [
    "BenchmarkFailed",
    "Cell",
    "Echo",
    "Sample",
    "Settings",
    "System",
    "WorkerProcess",
    "measure",
    "run",
    "work",
]

Echo = Callable[[bytes], Awaitable[bytes]]
"""Sends bytes to the worker and returns what came back."""

STUCK = 60.0
"""Seconds past its end after which a measurement counts as stuck."""


class BenchmarkFailed(Exception):
    """A system did not work: there is no figure to report."""


@dataclass(frozen=True)
class System:
    """One way to get bytes echoed."""

    name: str
    """What `--systems` calls it."""
    title: str
    """What the table calls it."""
    client: Callable[[str, str], AbstractAsyncContextManager[Echo]]
    """Takes the broker's URL and the name of a queue that no other run uses; connects the calling side.

    On a clean exit it deletes what it and its worker declared at the broker.
    """
    worker_module: str | None = None
    """Run as `python -m`, with the queue's name as its argument: the worker's process. None: there is no other."""


@dataclass(frozen=True)
class Settings:
    """What one run measures."""

    inflight: Sequence[int] = (1, 50, 500, 5000)
    """How many calls are kept in flight, one measurement for each."""
    seconds: float = 0.7
    """How long new calls are made in each measurement; 0 makes exactly one call per call in flight."""
    rounds: int = 3
    size: int = 100
    """Bytes in a payload; at least 8."""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    calls: int
    seconds: float
    """From the first call made to the last one answered."""
    p50_ms: float
    p99_ms: float
    client_cpu: float
    """CPU seconds that the calling process spent."""
    worker_cpu: float | None
    """CPU seconds that the worker's process spent; None where the caller is the worker."""

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds


@dataclass
class Cell:
    """What was measured of one system with one number of calls in flight."""

    system: str
    title: str
    inflight: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Calls per second, the median over the rounds."""
        return statistics.median(sample.rate for sample in self.samples)

    @property
    def p50_ms(self) -> float:
        return statistics.median(sample.p50_ms for sample in self.samples)

    @property
    def p99_ms(self) -> float:
        return statistics.median(sample.p99_ms for sample in self.samples)

    @property
    def client_cpu(self) -> float:
        """CPU seconds per 1000 calls at the calling side."""
        return statistics.median(1000 * sample.client_cpu / sample.calls for sample in self.samples)

    @property
    def worker_cpu(self) -> float | None:
        """CPU seconds per 1000 calls at the worker's side."""
        spent = [1000 * s.worker_cpu / s.calls for s in self.samples if s.worker_cpu is not None]
        return statistics.median(spent) if spent else None

    def as_dict(self) -> dict[str, Any]:
        """The medians, and every round's own figures."""
        return {
            "system": self.system,
            "title": self.title,
            "inflight": self.inflight,
            "calls_per_second": self.rate,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "client_cpu_per_1000": self.client_cpu,
            "worker_cpu_per_1000": self.worker_cpu,
            "rounds": [{"calls_per_second": sample.rate, **vars(sample)} for sample in self.samples],
        }


class WorkerProcess:
    """A system's worker, in a process of its own that ends when this one does."""

    def __init__(self, process: asyncio.subprocess.Process, module: str) -> None:
        self._process = process
        self._module = module

    async def cpu(self) -> float:
        """CPU seconds that the process has spent so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"cpu\n")
        return float(await self.line())

    async def line(self) -> str:
        """The next line that the worker says; a BenchmarkFailed if it ended instead."""
        assert self._process.stdout is not None
        said = await self._process.stdout.readline()
        if not said:
            raise BenchmarkFailed(f"the worker ended (python -m {self._module}): see its traceback above")
        return said.decode().strip()

    @classmethod
    @asynccontextmanager
    async def start(cls, module: str, url: str, queue: str) -> AsyncIterator[WorkerProcess]:
        """Start it, and wait until it says that it consumes."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, queue,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "ATASKS_BENCH_AMQP_URL": url},  # not an argument: it holds a password
            start_new_session=True,  # an interrupt is ours to handle: the worker ends by itself
        )  # fmt: skip
        try:
            worker = cls(process, module)
            async with asyncio.timeout(30):
                await worker.line()
            yield worker
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def work(serving: Callable[[str, str], AbstractAsyncContextManager[object]]) -> None:
    """The main function of a worker's process: serve the queue in `sys.argv[1]` until the standard input ends.

    Says `ready` once `serving(url, queue)` is entered, and answers each line with the CPU seconds spent so far.
    """

    async def main() -> None:
        lines = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        async with serving(os.environ["ATASKS_BENCH_AMQP_URL"], sys.argv[1]):
            print("ready", flush=True)
            while await lines.readline():
                print(time.process_time(), flush=True)
        pipe.close()

    asyncio.run(main())


async def measure(
    echo: Echo, inflight: int, seconds: float, size: int = 100, worker: WorkerProcess | None = None
) -> Sample:
    """Keep `inflight` calls in flight for so many seconds, and at least one call each; wait for the last answer.

    Each of the callers has its own payload and checks what came back, so that answers that were swapped are a
    BenchmarkFailed and not a good figure.
    """
    latencies: list[float] = []
    clock = time.perf_counter

    async def caller(number: int) -> None:
        payload = number.to_bytes(8, "big").ljust(size, b".")
        while True:
            begun = clock()
            if await echo(payload) != payload:
                raise BenchmarkFailed("a call came back with another call's answer")
            now = clock()
            latencies.append(now - begun)
            if now >= end:
                return

    gc.collect()  # the garbage of the previous measurement is not this one's to clear
    worker_cpu = await worker.cpu() if worker is not None else 0.0
    cpu = time.process_time()
    start = clock()
    end = start + seconds
    try:
        async with asyncio.timeout(seconds + STUCK), asyncio.TaskGroup() as group:
            for number in range(inflight):
                group.create_task(caller(number))
    except TimeoutError:
        raise BenchmarkFailed(f"{inflight} in flight: some calls were not answered in {STUCK:.0f} s") from None
    except ExceptionGroup as errors:
        raise BenchmarkFailed(f"{inflight} in flight: {errors.exceptions[0]!r}") from errors
    elapsed = clock() - start
    cpu = time.process_time() - cpu
    latencies.sort()
    return Sample(
        calls=len(latencies),
        seconds=elapsed,
        p50_ms=1000 * percentile(latencies, 50),
        p99_ms=1000 * percentile(latencies, 99),
        client_cpu=cpu,
        worker_cpu=await worker.cpu() - worker_cpu if worker is not None else None,
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    return ascending[max(0, ceil(len(ascending) * percent / 100) - 1)]


async def run(
    systems: Iterable[System], url: str, settings: Settings, progress: Callable[[str], None] = lambda line: None
) -> list[Cell]:
    """Measure the systems in rounds; the cells are ordered by calls in flight, then as the systems were given."""
    async with AsyncExitStack() as stack:
        ready: list[tuple[System, Echo, WorkerProcess | None]] = []
        for system in systems:
            queue = f"bench-{uuid.uuid4().hex}"
            # The client's exit deletes the queues, so it is entered first and left last.
            echo = await stack.enter_async_context(system.client(url, queue))
            worker = None
            if system.worker_module is not None:
                worker = await stack.enter_async_context(WorkerProcess.start(system.worker_module, url, queue))
            ready.append((system, echo, worker))
            await measure(echo, 20, settings.seconds / 5, settings.size)  # warm: imports, caches, branches

        cells = {
            (inflight, system.name): Cell(system.name, system.title, inflight)
            for inflight in settings.inflight
            for system, _, _ in ready
        }
        for number in range(settings.rounds):
            for inflight in settings.inflight:
                progress(f"round {number + 1} of {settings.rounds}: {inflight} in flight")
                for system, echo, worker in ready:
                    sample = await measure(echo, inflight, settings.seconds, settings.size, worker)
                    cells[inflight, system.name].samples.append(sample)
        return list(cells.values())
