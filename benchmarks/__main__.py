"""`python -m benchmarks`: atasks beside its peers, in one run, as a table.

RabbitMQ is the one named by `$ATASKS_BENCH_AMQP_URL`, else the one of the tests (see tests/broker.py): a private
node. Redis, which some peers keep results in, is the one named by `$ATASKS_BENCH_REDIS_URL`, else the one at
`redis://127.0.0.1:6379`, else a private one. Nothing else should be running on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import redis_server
from benchmarks.catalogue import AMQP, REDIS, SYSTEMS, WORKLOADS, System
from benchmarks.harness import VARIABLES, Settings, run
from benchmarks.load import BenchmarkFailed
from benchmarks.report import as_json, promises, table


def workloads(text: str) -> list[str]:
    """`sequential,50` -> the workloads: names, and numbers of calls in flight."""
    values = text.split(",")
    for value in values:
        if value not in WORKLOADS and not (value.isdigit() and int(value)):
            raise argparse.ArgumentTypeError(
                f"no workload {value!r}: choose from {','.join(WORKLOADS)}, or a number of calls in flight"
            )
    return values


def systems(text: str) -> list[System]:
    """`loopback,amqp` -> the systems; `ours`, `all`."""
    if text == "all":
        return [system for system in SYSTEMS.values() if not system.uvloop]
    if text == "ours":
        return [system for system in SYSTEMS.values() if system.ours and not system.uvloop]
    unknown = [value for value in text.split(",") if value not in SYSTEMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no system {unknown[0]!r}: choose from ours,all,{','.join(SYSTEMS)}")
    return [SYSTEMS[value] for value in text.split(",")]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    usual = Settings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure atasks beside its peers.")
    parser.add_argument(
        "--systems",
        type=systems,
        default="ours",
        metavar="A,B",
        help=f"ours (default), all, or of {','.join(SYSTEMS)}",
    )
    parser.add_argument("--uvloop", action="store_true", help="measure ours on uvloop too")
    parser.add_argument(
        "--workloads",
        type=workloads,
        default=list(usual.workloads),
        metavar="A,B",
        help=f"of {','.join(WORKLOADS)} (default: all), or numbers of calls in flight",
    )
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, metavar="S", help="for each measurement (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=usual.rounds, metavar="N", help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    parsed = parser.parse_args(given)
    if parsed.seconds < 0 or parsed.rounds < 1:
        parser.error("--seconds is at least 0, --rounds at least 1")
    if parsed.uvloop:
        # Not beside a named system that has no other loop to compare with, but beside each of ours that was named.
        parsed.systems = [
            chosen
            for system in parsed.systems
            for chosen in (system, SYSTEMS.get(f"{system.name}-uvloop"))
            if chosen is not None
        ]
    return parsed


@contextmanager
def servers(needed: frozenset[str]) -> Iterator[dict[str, str]]:
    """The URLs of what is needed, see the top; what was started ends with the block. Redis may be missing."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        if REDIS in needed:
            redis = stack.enter_context(redis_server.running())
            if redis is not None:
                urls[REDIS] = redis
        if AMQP in needed:
            urls[AMQP] = os.environ.get(VARIABLES[AMQP]) or stack.enter_context(broker())
        yield urls


@contextmanager
def broker() -> Iterator[str]:
    """The URL of the broker of the tests, running."""
    import tests.broker  # needs what only the tests need

    try:
        with tests.broker.running() as running:
            yield running.url
    except tests.broker.BrokerError as error:
        raise BenchmarkFailed(str(error)) from error


def progress(line: str) -> None:
    """Say on the standard error how far it is."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run, print the table, write the JSON. Exits with 1 if a system failed."""
    given = arguments()
    chosen: list[System] = given.systems
    settings = Settings(given.workloads, given.seconds, given.rounds)
    try:
        with servers(frozenset().union(*(system.needs for system in chosen))) as urls:
            cells = asyncio.run(run(chosen, urls, settings, progress))
    except BenchmarkFailed as error:
        sys.exit(f"no result: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(table(cells))
    print(promises(chosen))
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        given.json.write_text(json.dumps(as_json(cells, chosen, settings, command), indent=2) + "\n")
    if any(cell.note.startswith("failed") for cell in cells):
        sys.exit(1)


if __name__ == "__main__":
    main()
