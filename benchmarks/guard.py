"""`python -m benchmarks.guard`: has atasks become slower? In about a minute; no test, and none needs it.

It compares atasks over RabbitMQ with echoes over a bare aiormq and of hand-packed frames, over the loopback with
bare asyncio tasks, with seals with itself without them, nested calls over RabbitMQ with those of one host, and
stages of plain functions with the pools of Python, in rounds of one run, so that the machine and its other work
cancel out as far as they can: the median ratio over the rounds decides. Exits with 1 where a ratio is past its
bound.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.__main__ import progress, servers
from benchmarks.catalogue import SYSTEMS
from benchmarks.harness import Cell, Sample, Settings, run
from benchmarks.load import BenchmarkFailed
from benchmarks.pipelines.__main__ import SYSTEMS as PIPELINES
from benchmarks.pipelines.__main__ import blocking
from benchmarks.pipelines.blocking import WORKS

__all__ = ["CHECKS", "Check", "verdict"]

ROUNDS = 5
SECONDS = 0.4


def _cpu(sample: Sample) -> float:
    """CPU seconds per call, of both sides."""
    return (sample.client_cpu + (sample.worker_cpu or 0.0)) / sample.calls


STAGES = "stages"
"""Name here of the system whose workloads are those of `benchmarks.pipelines.blocking`."""


@dataclass(frozen=True)
class Check:
    """A figure of atasks, as a part of the same figure of another system, that is to stay below a bound."""

    workload: str
    what: str
    figure: Callable[[Sample], float]
    """Figure of a sample; less is better."""
    bound: float
    system: str = "amqp"
    beside: str = "aiormq"
    """The system that is the measure."""

    def ratio(self, cells: Sequence[Cell]) -> float:
        """The median over the rounds."""
        ours, bare = (
            next(cell.samples for cell in cells if (cell.system, cell.workload) == (name, self.workload))
            for name in (self.system, self.beside)
        )
        return statistics.median(self.figure(a) / self.figure(b) for a, b in zip(ours, bare, strict=True))


def _seconds(sample: Sample) -> float:
    """Seconds per call, or per item."""
    return 1 / sample.rate


CHECKS = (
    Check("sequential", "p50", lambda sample: sample.p50_ms, 1.4),
    Check("sequential", "CPU per call", _cpu, 1.4),
    Check("sequential", "p50", lambda sample: sample.p50_ms, 1.5, beside="frames"),
    Check("concurrent", "time per call", _seconds, 0.2),
    Check("concurrent", "CPU per call", _cpu, 0.2),
    Check("sequential", "CPU per call", _cpu, 4.0, "loopback", "asyncio"),
    Check("concurrent", "CPU per call", _cpu, 5.2, "loopback", "asyncio"),
    Check("concurrent", "CPU per call", _cpu, 1.15, "amqp-sealed", "amqp"),
    Check("nested", "CPU per call", _cpu, 3.8, beside="local"),
    Check("100 KiB", "CPU per call", _cpu, 1.2, "local", "frames"),
    Check("100 KiB", "CPU per call", _cpu, 3.0, beside="frames"),
    Check("threads", "CPU per item", _cpu, 0.6, STAGES, "pool"),
    Check("processes", "CPU per item", _cpu, 0.3, STAGES, "pool"),
    Check("large", "CPU per item", _cpu, 0.6, STAGES, "pool"),
    Check("start", "CPU per item", _cpu, 3.5, STAGES, "pool"),
)
"""With room for noise: seen on a quiet machine were 0.9 to 1.1 one at a time, and 0.07 to 0.09 at 500 in flight.
These cost less than the bare echo's because they share messages; a bound of 0.2 is passed where few of them do.
Over the loopback 3.4 to 3.6 were seen one at a time, and 4.6 to 4.7 at 500 in flight; it was 4.4 and 5.7 when each
call was counted as if another process read it at once. Seals: 1.03 to 1.07, with 1.17 in one run, and 1.18 to 1.28
when each call of a message was looked at by itself. Nested calls: 2.1 to 3.0; 100 KiB: 0.7 to 0.9, and 2.1 to 2.2.
Stages: 0.25 to 0.38, 0.1 (0.26 to 0.36 when 17 items were sent at once), 0.37, and 1.7 to 2.1 for their start,
with compiled bytecode. That was 3.1 when each process took all modules apart, and 9.2 when each was an
interpreter."""


def verdict(cells: Sequence[Cell]) -> tuple[str, bool]:
    """Return the lines to print, and True if every ratio is within its bound."""
    lines = []
    good = True
    for check in CHECKS:
        ratio = check.ratio(cells)
        within = ratio <= check.bound
        good = good and within
        said = "ok" if within else "TOO SLOW"
        lines.append(
            f"{check.system:<11} {check.workload:<11} {check.what:<14} {ratio:>6.2f} of that of {check.beside} "
            f"(<= {check.bound})  {said}"
        )
    return "\n".join(lines), good


def calls(checks: Sequence[Check]) -> list[Cell]:
    """Measure the calls that these checks compare: each workload with the systems that need it."""
    cells: list[Cell] = []
    wanted: dict[str, dict[str, None]] = {}
    for check in checks:
        wanted.setdefault(check.workload, {}).update(dict.fromkeys((check.system, check.beside)))
    systems = {name: SYSTEMS[name] for names in wanted.values() for name in names}
    with servers(frozenset().union(*(system.needs for system in systems.values()))) as urls:
        for workload, names in wanted.items():
            settings = Settings((workload,), SECONDS, ROUNDS)
            cells += asyncio.run(run([systems[name] for name in names], urls, settings, progress))
    return cells


def stages(checks: Sequence[Check]) -> list[Cell]:
    """Measure the stages of plain functions that these checks compare."""
    works = tuple(dict.fromkeys(check.workload for check in checks))
    return [
        Cell(STAGES if name == "atasks" else name, name, work, [_sample(WORKS[work][1], one) for one in found])
        for work, all_found in blocking(PIPELINES[:1], ROUNDS, works).items()
        for name, found in all_found.items()
    ]


def _sample(items: int, found: dict[str, float]) -> Sample:
    return Sample(items, found["seconds"], 0.0, 0.0, found["cpu"], None, 0, None)


def main() -> None:
    """Measure, say the ratios, and exit with 1 where one is past its bound."""
    try:
        cells = calls([check for check in CHECKS if check.system != STAGES])
        cells += stages([check for check in CHECKS if check.system == STAGES])
    except BenchmarkFailed as error:
        sys.exit(f"no result: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    failed = {cell.note for cell in cells if cell.note.startswith("failed")}
    if failed:
        sys.exit("no result: " + "; ".join(sorted(failed)))
    said, good = verdict(cells)
    print(said)
    if not good:
        sys.exit("slower than it was: run it again on a quiet machine, then compare commits")


if __name__ == "__main__":
    main()
