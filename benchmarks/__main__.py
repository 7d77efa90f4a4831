"""`python -m benchmarks`: atasks beside its peers, in one run, as a table.

The broker is the one named by `$ATASKS_BENCH_AMQP_URL`, else the private node of the tests, else
`amqp://guest:guest@localhost/`. Nothing else should be running on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

from benchmarks.harness import BenchmarkFailed, Cell, Settings, System, run
from benchmarks.report import as_json, table

MODULES = {
    "loopback": "benchmarks.echo_loopback",
    "amqp": "benchmarks.echo_amqp",
    "aiopika": "benchmarks.aiopika_rpc",
    "aiormq": "benchmarks.aiormq_echo",
}
"""System -> its module, imported only if it is measured: loopback needs neither a broker nor its clients."""

LOCAL = frozenset({"loopback"})
"""The systems that need no broker."""


def numbers(text: str) -> list[int]:
    """`1,50,500` -> the numbers, each at least 1."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def names(text: str) -> list[str]:
    """`loopback,amqp` -> the names, each of a system."""
    values = text.split(",")
    unknown = [value for value in values if value not in MODULES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no system {unknown[0]!r}: choose from {','.join(MODULES)}")
    return values


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    usual = Settings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure atasks beside its peers.")
    parser.add_argument(
        "--systems",
        type=names,
        default=list(MODULES),
        metavar="A,B",
        help=f"of {','.join(MODULES)} (default: all)",
    )
    parser.add_argument(
        "--inflight",
        type=numbers,
        default=list(usual.inflight),
        metavar="N,M",
        help="calls in flight (%(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, metavar="S", help="for each measurement (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=usual.rounds, metavar="N", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=usual.size, metavar="BYTES", help="of a payload (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    parsed = parser.parse_args(given)
    if parsed.seconds < 0 or parsed.rounds < 1 or parsed.size < 8:
        parser.error("--seconds is at least 0, --rounds at least 1, --size at least 8")
    return parsed


@contextmanager
def broker() -> Iterator[str]:
    """The URL of a broker, see the top; a private node ends with the block."""
    named = os.environ.get("ATASKS_BENCH_AMQP_URL")
    if named:
        yield named
        return
    from tests.broker import BrokerError, NoBroker, running  # imports what only the tests need

    with ExitStack() as stack:
        try:
            url = stack.enter_context(running()).url
        except NoBroker:
            url = "amqp://guest:guest@localhost/"
        except BrokerError as error:
            raise BenchmarkFailed(f"the private broker does not start: {error}") from error
        yield url


def benchmark(systems: Sequence[str], settings: Settings) -> list[Cell]:
    """Measure, and say on the standard error how far it is."""

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    loaded: list[System] = [import_module(MODULES[name]).SYSTEM for name in systems]
    if LOCAL.issuperset(systems):
        return asyncio.run(run(loaded, "loopback:", settings, progress))
    with broker() as url:
        return asyncio.run(run(loaded, url, settings, progress))


def main() -> None:
    """Run, print the table, write the JSON."""
    given = arguments()
    settings = Settings(given.inflight, given.seconds, given.rounds, given.size)
    try:
        cells = benchmark(given.systems, settings)
    except ImportError as error:
        sys.exit(f"{error}: install what the benchmarks need, or choose others with --systems")
    except BenchmarkFailed as error:
        sys.exit(f"no result: {error}")
    except ConnectionError as error:
        sys.exit(f"no result: {error}; the broker is the one of $ATASKS_BENCH_AMQP_URL, if that is set")
    except KeyboardInterrupt:
        sys.exit(130)
    print(table(cells))
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(cells, settings), indent=2) + "\n")


if __name__ == "__main__":
    main()
