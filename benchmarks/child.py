"""Process of a client or a worker: one JSON object per line, in and out. Standard library alone.

A module of a system ends with `main(client, worker)`, and is run as `python -m MODULE client|worker QUEUE`, with
`--uvloop` or without. Both say `{"ready": true}` once they are connected. A client then answers each `Load` that
it is told with its figures, or with `{"error": ...}`. Both end when their standard input does: they outlive
nobody. What a system prints goes to the standard error, lest it be taken for an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TextIO

from benchmarks.load import BenchmarkFailed, Client, Load, WindowClient, measure

__all__ = ["amqp_url", "main", "redis_url"]

Side = Callable[[str], AbstractAsyncContextManager[Any]]
"""Takes the name of a queue that no other run uses, and is connected while it is entered."""


def amqp_url() -> str:
    """Return the URL of RabbitMQ."""
    return os.environ["ATASKS_BENCH_AMQP_URL"]


def redis_url() -> str:
    """Return the URL of Redis."""
    return os.environ["ATASKS_BENCH_REDIS_URL"]


def main(client: Side, worker: Side | None = None) -> None:
    """Be the side that the command line names.

    `client(queue)` yields a `Client` or a `WindowClient`, and on its exit, which is later than the worker's,
    deletes what both declared at the broker. `worker(queue)` serves while it is entered.
    """
    role, queue, *options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side = client if role == "client" else worker
    assert side is not None, "a system without a worker's process has no such side"
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if "--uvloop" in options:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_speak(side(queue), answers))


async def _speak(side: AbstractAsyncContextManager[Any], answers: TextIO) -> None:
    """Enter the side, and answer lines until there are no more."""
    lines = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    try:
        async with side as entered:
            print(json.dumps({"ready": True}), file=answers)
            while line := await lines.readline():
                print(json.dumps(await _answer(entered, Load(**json.loads(line)))), file=answers)
    finally:
        pipe.close()


async def _answer(client: Client | WindowClient, load: Load) -> dict[str, Any]:
    try:
        return {**await measure(client, load)}
    except BenchmarkFailed as error:
        return {"error": str(error)}
