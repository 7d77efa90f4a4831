"""`python -m benchmarks.guard`: has atasks over RabbitMQ become slower? In under 30 s; no test, and none needs it.

It compares atasks with a bare aiormq echo in rounds of one run, so that the machine and its other work cancel out
as far as they can: the median ratio over the rounds decides. Exits with 1 where a ratio is past its bound.
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

__all__ = ["CHECKS", "Check", "verdict"]

SETTINGS = Settings(workloads=("sequential", "concurrent"), seconds=0.4, rounds=5)


def _cpu(sample: Sample) -> float:
    """CPU seconds per call, of both sides."""
    return (sample.client_cpu + (sample.worker_cpu or 0.0)) / sample.calls


@dataclass(frozen=True)
class Check:
    """A figure of atasks, as a part of the same figure of the bare echo, that is to stay below a bound."""

    workload: str
    what: str
    figure: Callable[[Sample], float]
    """Of which less is better."""
    bound: float

    def ratio(self, cells: Sequence[Cell]) -> float:
        """The median over the rounds."""
        ours, bare = (
            next(cell.samples for cell in cells if (cell.system, cell.workload) == (name, self.workload))
            for name in ("amqp", "aiormq")
        )
        return statistics.median(self.figure(a) / self.figure(b) for a, b in zip(ours, bare, strict=True))


CHECKS = (
    Check("sequential", "p50", lambda sample: sample.p50_ms, 1.4),
    Check("sequential", "CPU per call", _cpu, 1.4),
    Check("concurrent", "time per call", lambda sample: 1 / sample.rate, 0.2),
    Check("concurrent", "CPU per call", _cpu, 0.2),
)
"""With room for noise: seen on a quiet machine were 0.9 to 1.1 one at a time, and 0.07 to 0.09 at 500 in flight.
These cost less than the bare echo's because they share messages; a bound of 0.2 is passed where few of them do."""


def verdict(cells: Sequence[Cell]) -> tuple[str, bool]:
    """What to print, and whether every ratio is within its bound."""
    lines = []
    good = True
    for check in CHECKS:
        ratio = check.ratio(cells)
        within = ratio <= check.bound
        good = good and within
        said = "ok" if within else "TOO SLOW"
        lines.append(
            f"{check.workload:<11} {check.what:<14} {ratio:>6.2f} of a bare echo's (<= {check.bound})  {said}"
        )
    return "\n".join(lines), good


def main() -> None:
    """Measure, say the ratios, and exit with 1 where one is past its bound."""
    systems = [SYSTEMS["amqp"], SYSTEMS["aiormq"]]
    try:
        with servers(frozenset().union(*(system.needs for system in systems))) as urls:
            cells = asyncio.run(run(systems, urls, SETTINGS, progress))
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
