"""`python -m tests.faults.mended URL OPTIONS NOTES VERSION`: a worker whose code fails at item 5 in version 1.
`python -m tests.faults.mended URL OPTIONS retry ID`: retries a run, prints its result, and exits."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import atasks
from atasks import atask
from atasks.pipeline import attach, collect, flat_map, map, stage

__all__ = ["pipeline"]

notes = Path(sys.argv[3] if len(sys.argv) > 3 else "")
version = sys.argv[4] if len(sys.argv) > 4 else ""


def note(line: str) -> None:
    with notes.open("a") as file:
        file.write(line)


@atask
async def numbers(count: int) -> list[int]:
    return list(range(count))


@atask
async def halved(number: int) -> float:
    note(f"{version}:{number}\n")
    if number == 5 and version == "1":
        raise ZeroDivisionError("version 1 divides by 0")
    return number / 2


@atask
async def added(values: list[float]) -> float:
    return sum(values)


pipeline = flat_map(numbers) | map(halved, workers=1) | collect() | stage(added)


async def main(url: str, options: dict[str, Any], what: str, argument: str) -> None:
    if what == "retry":
        async with atasks.connect(url, **options):
            handle = attach(argument)
            await handle.retry()
            print(await handle)
        return
    async with atasks.serve(url, **options):
        print("serves", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.modules["tests.faults.mended"] = sys.modules["__main__"]
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:]))
