"""atasks over RabbitMQ as in `atasks_amqp`, but both sides seal every message."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import atasks
from benchmarks.atasks_amqp import delete
from benchmarks.atasks_functions import echo, tree
from benchmarks.child import amqp_url, main
from benchmarks.load import Client


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Calls with a key that both sides derive from the queue's name."""
    with _keys(queue) as keys:
        async with atasks.connect(amqp_url(), prefix=queue, keys=keys):
            try:
                yield Client(echo, tree)
            finally:
                await delete(queue)


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    """Serves with the same key, and refuses what is not sealed."""
    with _keys(queue) as keys:
        async with atasks.serve(amqp_url(), prefix=queue, keys=keys):
            yield


@contextmanager
def _keys(queue: str) -> Iterator[str]:
    """A file with one key, for this measurement alone: the random name of the queue is secret enough here."""
    secret = base64.urlsafe_b64encode(hashlib.sha256(queue.encode()).digest()).rstrip(b"=").decode()
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write(f"both {secret} serve\n")
        file.flush()
        yield file.name


if __name__ == "__main__":
    main(client, worker)
