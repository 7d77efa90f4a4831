"""A caller process that a test may kill."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import atasks
from tests.faults import tasks
from tests.faults.history import History
from tests.faults.processes import Process

__all__ = ["CallerProcess", "ReaderProcess"]


class CallerProcess(Process):
    """`python -m tests.faults.callers`: makes `count` calls of `gated` at once, and ends when they have ended."""

    def __init__(self, record: Path, url: str, prefix: str, count: int, gate: Path, **options: Any) -> None:
        arguments = {"url": url, "prefix": prefix, "count": count, "gate": str(gate), "options": options}
        super().__init__("tests.faults.callers", str(record), json.dumps(arguments))


class ReaderProcess(Process):
    """`python -m tests.faults.callers`: reads a stream of `counting`."""

    def __init__(self, url: str, key: str, gate: Path, **options: Any) -> None:
        arguments = {"url": url, "key": key, "gate": str(gate), **options}
        super().__init__("tests.faults.callers", "-", json.dumps(arguments))


async def read(*, url: str, key: str, gate: str, **options: Any) -> None:
    async with atasks.connect(url, **options):
        async for number, _ in tasks.counting(key, 100, gate):
            print(number, flush=True)


async def call(record: Path, *, url: str, prefix: str, count: int, gate: str, options: dict[str, Any]) -> None:
    history = History(record)
    async with atasks.connect(url, prefix=prefix):
        await asyncio.gather(*history.start(count, tasks.gated, gate, **options))
    history.completed()
    history.check()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("arguments", type=json.loads)
    given = parser.parse_args()
    if "key" in given.arguments:
        asyncio.run(read(**given.arguments))
    else:
        asyncio.run(call(given.record, **given.arguments))


if __name__ == "__main__":
    main()
