"""Measurements: each system under each workload, in rounds.

Every system of a run is set up once, in processes of its own, and stays connected; the measurements then go round
by round, A B C A B C, and a result is the median over the rounds, because a neighbour's minute of noise should not
decide for or against one of them. A system that fails says so in its cells, and is left out from then on.
"""

from __future__ import annotations

import statistics
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.catalogue import AMQP, ONCE, REDIS, WORKLOADS, System
from benchmarks.environments import python_of
from benchmarks.load import BenchmarkFailed, Load
from benchmarks.processes import Child
from benchmarks.usage import Usage

__all__ = ["VARIABLES", "Cell", "Running", "Sample", "Settings", "run"]

VARIABLES = {AMQP: "ATASKS_BENCH_AMQP_URL", REDIS: "ATASKS_BENCH_REDIS_URL"}
"""Environment variables with the URL of each service: the user may set them, and a child reads them."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Workloads, seconds and rounds of one run."""

    workloads: Sequence[str] = tuple(WORKLOADS)
    """Names of `WORKLOADS`; a number is that many calls in flight."""
    seconds: float = 0.7
    """Seconds in which each measurement makes new calls; 0 makes exactly one call per call in flight."""
    rounds: int = 3

    def load(self, workload: str) -> Load:
        """The load of that name, for these seconds."""
        load = Load(int(workload)) if workload.isdigit() else WORKLOADS[workload]
        return replace(load, seconds=0.0 if workload in ONCE else self.seconds)


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
    """CPU seconds that the worker's processes spent; None where the caller is the worker."""
    client_peak: int
    """Bytes of memory."""
    worker_peak: int | None

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds


@dataclass
class Cell:
    """Samples of one system under one workload."""

    system: str
    title: str
    workload: str
    samples: list[Sample] = field(default_factory=list)
    note: str = ""
    """Why there are no samples, or not one of each round."""

    @property
    def rate(self) -> float:
        """Calls per second, the median over the rounds, as all that follow."""
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

    @property
    def client_peak(self) -> float:
        """Bytes of memory at the calling side."""
        return statistics.median(sample.client_peak for sample in self.samples)

    @property
    def worker_peak(self) -> float | None:
        """Bytes of memory at the worker's side."""
        held = [sample.worker_peak for sample in self.samples if sample.worker_peak is not None]
        return statistics.median(held) if held else None

    def as_dict(self) -> dict[str, Any]:
        """The medians, and every round's own figures."""
        names: dict[str, Any] = {"system": self.system, "title": self.title, "workload": self.workload}
        if self.note:
            names["note"] = self.note
        if not self.samples:
            return names
        return {
            **names,
            "calls_per_second": self.rate,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "client_cpu_per_1000": self.client_cpu,
            "worker_cpu_per_1000": self.worker_cpu,
            "client_peak_bytes": self.client_peak,
            "worker_peak_bytes": self.worker_peak,
            "rounds": [{"calls_per_second": sample.rate, **asdict(sample)} for sample in self.samples],
        }


class Running:
    """A system whose client and worker are connected."""

    def __init__(self, client: Child, worker: Child | None) -> None:
        self._client = client
        self._client_usage = Usage.of(client.pid)
        # A pool's workers are its client's children.
        below = Usage.below(client.pid)
        self._worker_usage = below
        if worker is not None:
            self._worker_usage = Usage.together(Usage.of(worker.pid), Usage.below(worker.pid), below)

    async def measure(self, load: Load) -> Sample:
        """Put that load on it; a BenchmarkFailed if it does not bear it."""
        for usage in (self._client_usage, self._worker_usage):
            usage.reset_peak()
        cpu = self._worker_usage.cpu()
        figures = await self._client.ask(asdict(load), load.seconds)
        remote = self._worker_usage.exists()
        return Sample(
            **figures,
            worker_cpu=self._worker_usage.cpu() - cpu if remote else None,
            client_peak=self._client_usage.peak(),
            worker_peak=self._worker_usage.peak() if remote else None,
        )

    @classmethod
    @asynccontextmanager
    async def start(
        cls, system: System, urls: Mapping[str, str], progress: Progress = lambda line: None
    ) -> AsyncIterator[Running]:
        """Start its processes, with what `system.needs` at these URLs."""
        for need in sorted(system.needs - urls.keys()):
            raise BenchmarkFailed(f"there is no {need} server: set ${VARIABLES[need]}")
        python = python_of(system, progress)
        environ = {VARIABLES[need]: urls[need] for need in system.needs}
        options = ("--uvloop",) if system.uvloop else ()
        queue = f"bench-{uuid.uuid4().hex}"
        # The client's exit deletes the queues, so it is entered first and left last.
        async with AsyncExitStack() as stack:
            start = stack.enter_async_context
            client = await start(Child.start(python, system.module, "client", queue, *options, environ=environ))
            worker = None
            if system.worker:
                worker = await start(
                    Child.start(python, system.module, "worker", queue, *options, environ=environ)
                )
            yield cls(client, worker)


async def run(
    systems: Iterable[System], urls: Mapping[str, str], settings: Settings, progress: Progress = lambda line: None
) -> list[Cell]:
    """Measure the systems in rounds; the cells are ordered by workload, then as the systems were given."""
    systems = list(systems)
    cells = {
        (workload, system.name): Cell(system.name, system.title, workload, note=system.cannot.get(workload, ""))
        for workload in settings.workloads
        for system in systems
    }
    async with AsyncExitStack() as stack:
        ready: dict[str, Running] = {}

        def failed(system: System, error: BenchmarkFailed) -> None:
            progress(f"{system.title} failed: {error}")
            ready.pop(system.name, None)
            for workload in settings.workloads:
                cell = cells[workload, system.name]
                cell.note = cell.note or f"failed: {error}"

        for system in systems:
            progress(f"starting {system.title}")
            try:
                running = await stack.enter_async_context(Running.start(system, urls, progress))
                await running.measure(Load(20, settings.seconds / 5))  # warm: imports, caches, branches
            except BenchmarkFailed as error:
                failed(system, error)
            else:
                ready[system.name] = running

        for number in range(settings.rounds):
            for workload in settings.workloads:
                progress(f"round {number + 1} of {settings.rounds}: {workload}")
                load = settings.load(workload)
                for system in systems:
                    if system.name in ready and workload not in system.cannot:
                        try:
                            sample = await ready[system.name].measure(load)
                        except BenchmarkFailed as error:
                            failed(system, error)
                        else:
                            cells[workload, system.name].samples.append(sample)
    return list(cells.values())
