"""`python -m tests.faults.submitters URL OPTIONS GATES STAGES`: submits a run, says its id, and exits. Without
stages it submits a call."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial, reduce
from operator import or_
from typing import Any

import atasks
from atasks.pipeline import Pipeline, bind, stage
from tests.faults.tasks import passed

__all__ = ["chained", "gated_stage"]


def gated_stage(function: Any, gates: str, number: int) -> Pipeline[..., Any, Any]:
    """`passed`, or one like it, as the stage of this number."""
    return stage(function, bind=bind(gates, number))


def chained(gates: str, count: int) -> Pipeline[..., Any, Any]:
    """So many stages, each of which waits for its gate."""
    return reduce(or_, (gated_stage(passed, gates, number) for number in range(count)))


async def main(url: str, options: str, gates: str, count: str) -> None:
    async with atasks.connect(url, **json.loads(options)):
        submit = chained(gates, int(count)).submit if int(count) else partial(passed.submit, gates, 0)
        handle = await submit([])
        print(handle.id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
