"""Messages that leave at once where none could leave with them, and requests whose acknowledgements wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from atasks.event_loop import ends_turn
from atasks.transport.backends.amqp.broker.acks import TOGETHER
from atasks.transport.backends.amqp.worker.request_message import RequestMessage


async def _look(seen: list[bool]) -> None:
    seen.append(ends_turn())


async def test_a_step_that_is_alone_in_its_turn_ends_it() -> None:
    seen: list[bool] = []
    await asyncio.create_task(_look(seen))
    assert seen == [True]


async def test_of_several_steps_the_last_one_ends_the_turn() -> None:
    seen: list[bool] = []
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def call() -> None:
        await _look(seen)
        await answer

    calls = asyncio.gather(*[call() for _ in range(3)])
    await asyncio.sleep(0.01)
    answer.set_result(None)
    await calls
    assert seen == [False, False, True]


async def test_a_callback_ends_no_turn() -> None:
    seen: list[bool] = []
    asyncio.get_running_loop().call_soon(lambda: seen.append(ends_turn()))
    await asyncio.sleep(0)
    assert seen == [False]


async def test_no_step_ends_a_turn_where_a_task_factory_may_begin_others_within_it() -> None:
    loop = asyncio.get_running_loop()

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> Any:
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)
    seen: list[bool] = []
    await asyncio.create_task(_look(seen))
    assert seen == [False]


@pytest.mark.parametrize(
    ("unfinished", "prefetch", "now"),
    [(0, 100, False), (100 - 2 * TOGETHER + 1, 100, True), (0, 2 * TOGETHER - 1, True)],
)
async def test_a_request_waits_to_be_acknowledged_where_the_window_has_room(
    unfinished: int, prefetch: int, now: bool
) -> None:
    """`Acks.ack` is told whether it waits for others."""
    told: list[bool] = []
    acks = SimpleNamespace(ack=lambda tag, late, now: told.append(now))
    consumer: Any = SimpleNamespace(acks=acks, generation=0, unfinished=0, prefetch=prefetch)
    properties = SimpleNamespace(
        message_id="a", correlation_id="", priority=None, expiration=None, delivery_mode=2, reply_to="b"
    )
    message: Any = SimpleNamespace(header=SimpleNamespace(properties=properties), delivery_tag=1)
    for patient in (True, False):
        request = RequestMessage.of(consumer, message)
        request.ended()
        consumer.unfinished = unfinished
        request.settled(now=not patient)
        consumer.unfinished = 0
    assert told == [now, True]
