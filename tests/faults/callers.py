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

__all__ = ["CallerProcess"]


class CallerProcess(Process):
    """`python -m tests.faults.callers`: makes `count` calls of `gated` at once, and ends when they have ended."""

    def __init__(self, record: Path, url: str, prefix: str, count: int, gate: Path, **options: Any) -> None:
        arguments = {"url": url, "prefix": prefix, "count": count, "gate": str(gate), "options": options}
        super().__init__("tests.faults.callers", str(record), json.dumps(arguments))


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
    asyncio.run(call(given.record, **given.arguments))


if __name__ == "__main__":
    main()
