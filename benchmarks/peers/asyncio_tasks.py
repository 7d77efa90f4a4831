"""Bare asyncio: a task and a future for each call, and pickles of what goes there and back."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.child import main
from benchmarks.load import Client


async def serve(arguments: bytes, reply: asyncio.Future[bytes]) -> None:
    (payload,), _ = pickle.loads(arguments)
    reply.set_result(pickle.dumps(payload, 5))


async def echo(payload: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[bytes] = loop.create_future()
    task = loop.create_task(serve(pickle.dumps(((payload,), {}), 5), reply))
    answer = await reply
    await task
    result: bytes = pickle.loads(answer)
    return result


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue: the task is the worker."""
    yield Client(echo)


if __name__ == "__main__":
    main(client)
