"""Celery with results by `rpc://`, the result backend that needs nothing but the broker.

The worker is the quickest kind for calls as short as these (the "solo" pool: they run where the messages arrive),
without the events and gossip that its monitors need.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery
from celery.app.trace import setup_worker_optimizations
from celery.result import AsyncResult
from celery.worker import WorkController
from kombu import Exchange, Queue

from benchmarks.child import amqp_url, main
from benchmarks.load import STUCK, WindowClient


def application(queue: str) -> Celery:
    app = Celery("benchmark", broker=amqp_url(), backend="rpc://")
    app.conf.update(
        task_serializer="pickle",
        result_serializer="pickle",
        accept_content=["pickle"],
        task_queues=[Queue(queue, Exchange(""), routing_key=queue)],
        task_default_queue=queue,
        task_default_exchange="",
        task_default_routing_key=queue,
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=100,
    )

    @app.task(name="echo")
    def echo(payload: bytes) -> bytes:
        return payload

    return app


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[WindowClient]:
    """Wait for results by blocking: Celery has nothing to await."""
    app = application(queue)
    echo = app.tasks["echo"]

    def result(handle: AsyncResult) -> bytes:
        answer: bytes = handle.get(timeout=STUCK)
        return answer

    try:
        yield WindowClient(lambda payload: echo.apply_async((payload,)), result)
    finally:
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(queue)
        app.close()


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    ready = threading.Event()
    app = application(queue)
    setup_worker_optimizations(app, queue)  # as `celery worker` does
    controller = WorkController(
        app=app,
        pool_cls="solo",
        concurrency=1,
        queues=[queue],
        ready_callback=lambda consumer: ready.set(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    thread = threading.Thread(target=controller.start)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        controller.stop()
        thread.join()


if __name__ == "__main__":
    main(client, worker)
