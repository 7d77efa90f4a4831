"""dramatiq over RabbitMQ, with results in Redis; its worker has 8 threads, as it does by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq import Actor, Message, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.encoder import PickleEncoder
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.child import amqp_url, main, redis_url
from benchmarks.load import STUCK, WindowClient


def application(queue: str) -> Actor:
    """The actor, on a broker of its own."""
    dramatiq.set_encoder(PickleEncoder())  # JSON, its default, has no bytes
    broker = RabbitmqBroker(url=amqp_url(), confirm_delivery=True)
    broker.add_middleware(Results(backend=RedisBackend(url=redis_url(), namespace=queue), result_ttl=300_000))
    dramatiq.set_broker(broker)  # where messages look for their results

    def echo(payload: bytes) -> bytes:
        return payload

    return dramatiq.actor(echo, queue_name=queue, broker=broker, store_results=True)


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[WindowClient]:
    """Wait for results by blocking: Dramatiq has nothing to await."""
    echo = application(queue)

    def result(message: Message) -> bytes:
        answer: bytes = message.get_result(block=True, timeout=int(1000 * STUCK))
        return answer

    try:
        yield WindowClient(echo.send, result)
    finally:
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
            echo.broker.channel.queue_delete(name)
        echo.broker.close()


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    serving = Worker(application(queue).broker)
    serving.start()
    try:
        yield
    finally:
        serving.stop()
        serving.broker.close()


if __name__ == "__main__":
    main(client, worker)
