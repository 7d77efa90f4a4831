"""`python -m benchmarks.pipelines`: items per second through three stages of trivial coroutine functions, beside
pypeln and pyper in environments of their own; plain functions in threads and processes, beside these and the pools
of Python; and, over RabbitMQ, how well remote stages are kept busy.

The local systems run round by round, A B C A B C, each time in a fresh process; a result is the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import progress, servers
from benchmarks.catalogue import AMQP, System
from benchmarks.environments import python_of
from benchmarks.harness import VARIABLES
from benchmarks.load import STUCK, BenchmarkFailed
from benchmarks.pipelines.blocking import WORKS, may

__all__ = ["SYSTEMS", "blocking", "blocking_table", "local", "remote", "table"]

ROOT = Path(__file__).parents[2]

SYSTEMS = (
    System("pipeline", "atasks.pipeline", "benchmarks.pipelines.ours", "", worker=False, ours=True),
    System(
        "pypeln",
        "pypeln.task",
        "benchmarks.pipelines.pypeln_task",
        "",
        requires=("pypeln==0.4.9", "setuptools==80.9.0"),
        worker=False,
    ),
    System(
        "pyper", "pyper", "benchmarks.pipelines.pyper_async", "", requires=("python-pyper==0.4.4",), worker=False
    ),
)


def local(systems: Sequence[System], items: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The samples of each system, by title."""
    pythons = {system.title: python_of(system, progress) for system in systems}
    samples: dict[str, list[dict[str, float]]] = {system.title: [] for system in systems}
    for number in range(rounds):
        for system in systems:
            progress(f"round {number + 1}: {system.title}")
            done = _child([str(pythons[system.title]), "-m", system.module, str(items)], dict(os.environ))
            samples[system.title].append(done)
    return samples


def blocking(
    systems: Sequence[System], rounds: int, works: Sequence[str] = tuple(WORKS)
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The samples of plain functions in threads and processes, by work and name of the system: seconds, and those
    of CPU time of all sides."""
    pythons = {system.name: python_of(system, progress) for system in systems}
    runs = {"atasks" if system.ours else system.name: str(pythons[system.name]) for system in systems}
    runs |= {"pool": sys.executable, "pool_in_chunks": sys.executable}
    samples: dict[str, dict[str, list[dict[str, float]]]] = {
        work: {name: [] for name in runs if may(name, work)} for work in works
    }
    for work, all_found in samples.items():
        for number in range(rounds):
            for name, found in all_found.items():
                progress(f"round {number + 1}: {work} of {name}")
                command = [runs[name], "-m", "benchmarks.pipelines.blocking", name, work]
                found.append(_child(command, dict(os.environ)))
    return samples


def blocking_table(samples: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """A table of each work of `blocking`, in milliseconds: the medians."""
    lines = []
    for work, all_found in samples.items():
        lines += [f"| {WORKS[work][0]} | ms | ms of CPU |", "|---|---|---|"]
        for name, found in all_found.items():
            wall, cpu = (1e3 * statistics.median(one[key] for one in found) for key in ("seconds", "cpu"))
            lines.append(f"| {name} | {wall:.0f} | {cpu:.0f} |")
    return "\n".join(lines)


def remote(url: str, items: int, wide: int) -> dict[str, Any]:
    """Return the figures that a client measures of remote stages while a worker serves it."""
    environ = {**os.environ, VARIABLES[AMQP]: url}
    command = [sys.executable, "-m", "benchmarks.pipelines.remote"]
    prefix = f"bench-{uuid.uuid4().hex}"
    worker = subprocess.Popen([*command, "worker", prefix], cwd=ROOT, env=environ, stdin=subprocess.PIPE)
    try:
        return _child([*command, "client", prefix, str(items), str(wide)], environ)
    finally:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
        subprocess.run([*command, "delete", prefix], cwd=ROOT, env=environ, check=True)


def _child(command: list[str], environ: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=5 * STUCK
    )
    if done.returncode:
        raise BenchmarkFailed(f"{command[2]}: {(done.stderr.strip() or 'no error message').splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(samples: dict[str, list[dict[str, float]]]) -> str:
    """Items per second, the CPU time of an item, and how many times as fast the first one is."""
    rates = {
        title: statistics.median(sample["items"] / sample["seconds"] for sample in found)
        for title, found in samples.items()
    }
    first = next(iter(rates.values()))
    cpu = {
        title: statistics.median(1e6 * sample["cpu"] / sample["items"] for sample in found)
        for title, found in samples.items()
    }
    ours = next(iter(cpu.values()))
    lines = [
        "| three stages | items/s | atasks is faster by | CPU per item, us | atasks takes less by |",
        "|---|---|---|---|---|",
    ]
    for title, rate in rates.items():
        lines.append(
            f"| {title} | {rate:,.0f} | {first / rate:.1f} | {cpu[title]:.2f} | {cpu[title] / ours:.1f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines")
    parser.add_argument(
        "--items", type=int, default=100_000, metavar="N", help="through three stages (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--blocking", action="store_true", help="also measure threads and processes")
    parser.add_argument("--remote", action="store_true", help="also measure remote stages, over RabbitMQ")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = arguments()
    try:
        systems = SYSTEMS[:1] if given.ours else SYSTEMS
        print(table(local(systems, given.items, given.rounds)))
        if given.blocking:
            print(blocking_table(blocking(systems, given.rounds)))
        if given.remote:
            with servers(frozenset({AMQP})) as urls:
                print(json.dumps(remote(urls[AMQP], 3000, given.items), indent=2))
    except BenchmarkFailed as error:
        sys.exit(f"no result: {error}")


if __name__ == "__main__":
    main()
