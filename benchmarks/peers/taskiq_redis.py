"""taskiq over RabbitMQ (taskiq-aio-pika), with results in Redis (taskiq-redis).

A client polls Redis for each result. Here it does so the more often the fewer calls wait, each millisecond at
most: the interval of 0.2 s that its `wait_result` has by itself would be the latency of every call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq import AsyncTaskiqDecoratedTask
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.child import amqp_url, main, redis_url
from benchmarks.load import Client
from benchmarks.peers._aiopika import delete

POLLS = 1000
"""Polls per second, all calls together."""

SLOTS = 100
"""Calls that a worker runs at once, its default; deliveries that it holds, which are 10 by default."""


class Tasks:
    """The broker and its tasks, the same at both sides."""

    def __init__(self, queue: str) -> None:
        results = RedisAsyncResultBackend(redis_url(), keep_results=False, result_ex_time=300, prefix_str=queue)
        self.broker = AioPikaBroker(
            amqp_url(),
            qos=SLOTS,
            exchange=Exchange(queue),
            task_queues=[Queue(name=queue, type=QueueType.CLASSIC)],
            dead_letter_queue=Queue(name=f"{queue}-dead", type=QueueType.CLASSIC),
        ).with_result_backend(results)
        self._waiting = 0

        @self.broker.task(task_name="echo")
        async def echo(payload: str) -> str:
            return payload

        @self.broker.task(task_name="tree")
        async def tree(depth: int) -> int:
            return 1 + sum(await asyncio.gather(*(self.tree(depth - 1) for _ in range(2)))) if depth else 1

        self._echo, self._tree = echo, tree

    async def echo(self, payload: bytes) -> bytes:
        # JSON has no bytes, and its models refuse those that are no text, whatever the serializer.
        return (await self._call(self._echo, payload.decode())).encode()

    async def tree(self, depth: int) -> int:
        return await self._call(self._tree, depth)

    async def _call(self, task: AsyncTaskiqDecoratedTask, argument):
        self._waiting += 1
        try:
            sent = await task.kiq(argument)
            while not await sent.is_ready():  # noqa: ASYNC110  # there is nothing else to wait for
                await asyncio.sleep(min(0.2, max(0.001, self._waiting / POLLS)))
            return (await sent.get_result()).return_value
        finally:
            self._waiting -= 1


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    tasks = Tasks(queue)
    await tasks.broker.startup()
    try:
        yield Client(tasks.echo, tasks.tree)
    finally:
        await tasks.broker.shutdown()
        await delete([queue, f"{queue}-dead"], [queue])


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    tasks = Tasks(queue)
    receiving = asyncio.create_task(run_receiver_task(tasks.broker, max_async_tasks=SLOTS, run_startup=True))
    try:
        yield
    finally:
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await receiving
        await tasks.broker.shutdown()


if __name__ == "__main__":
    main(client, worker)
