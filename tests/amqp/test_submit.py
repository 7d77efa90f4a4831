"""Submitted calls at the broker: which queues they cost, how they wait there, and how long."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import atasks
from atasks import atask
from atasks.options import MAX_DELAY
from atasks.testing import soon, until
from atasks.transport.backends.amqp.broker.delays import LEVELS, due_key, level_of, ticks_of
from atasks.transport.backends.amqp.broker.link import Link
from tests.broker import Broker

pytestmark = pytest.mark.usefixtures("amqp_leaks")


@atask(keep=0)
async def add_up(numbers: list[int], x: int) -> None:
    numbers.append(x)


@atask(keep=0)
async def began() -> None:
    moments.append(time.time())


moments: list[float] = []


def _queues(broker: Broker, prefix: str) -> set[str]:
    return {queue.name for queue in broker.queues() if queue.name.startswith(f"{prefix}.")}


async def test_a_thousand_submissions_that_keep_nothing_cost_no_queue(
    controllable_broker: Broker, prefix: str
) -> None:
    url = controllable_broker.url
    async with atasks.serve(url, prefix=prefix), atasks.connect(url, prefix=prefix):
        before = await asyncio.to_thread(_queues, controllable_broker, prefix)
        since = time.monotonic()
        await soon(asyncio.gather(*(add_up.submit([], x) for x in range(1000))))
        assert time.monotonic() - since < 20  # it takes 0.2 s
        assert await asyncio.to_thread(_queues, controllable_broker, prefix) == before


async def test_early_calls_leave_no_queue(controllable_broker: Broker, prefix: str) -> None:
    url = controllable_broker.url
    async with atasks.connect(url, prefix=prefix):
        await soon(asyncio.gather(*(began.submit() for _ in range(300))))
    early = f"{prefix}.q.default.default.early"
    assert early in await asyncio.to_thread(_queues, controllable_broker, prefix)
    moments.clear()
    async with atasks.serve(url, prefix=prefix):

        async def moved() -> None:
            while len(moments) < 300 or early in await asyncio.to_thread(_queues, controllable_broker, prefix):
                await asyncio.sleep(0.05)

        await soon(moved())
    assert len(moments) == 300


async def test_submissions_in_a_row_ask_the_broker_for_no_queue(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    state, declare = Link.queue_state, Link.declare_queue

    async def counted_state(link: Link, name: str) -> tuple[int, int] | None:
        asked.append(name)
        return await state(link, name)

    async def counted_declare(link: Link, name: str, *arguments: Any) -> None:
        asked.append(name)
        await declare(link, name, *arguments)

    monkeypatch.setattr(Link, "queue_state", counted_state)
    monkeypatch.setattr(Link, "declare_queue", counted_declare)
    moments.clear()
    since = time.monotonic()
    async with atasks.connect(amqp_url, prefix=prefix):
        for _ in range(100):
            await soon(began.submit())
        assert len(asked) < 20 + (time.monotonic() - since) / 0.02  # they were 400, in half a second
        async with atasks.serve(amqp_url, prefix=prefix):
            await until(lambda: len(moments) == 100)
            asked.clear()
            since = time.monotonic()
            for _ in range(100):
                await soon(began.submit())
            assert len(asked) < 20 + (time.monotonic() - since) / 0.02
            await until(lambda: len(moments) == 200)
    assert "could not be moved" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "ticks", "level"),
    [(0, 0, -1), (-5, 0, -1), (0.01, 1, 0), (0.1, 1, 0), (0.11, 2, 1), (3.2, 32, 5), (MAX_DELAY, 51_840_000, 25)],
)
def test_ticks(seconds: float, ticks: int, level: int) -> None:
    assert ticks_of(seconds) == ticks
    assert level_of(ticks) == level < LEVELS
    *digits, name = due_key(ticks, "a.#.b").split(".")
    assert int("".join(digits), 2) == ticks
    assert len(digits) == LEVELS
    assert name.isalnum()
    assert len(due_key(ticks, "q" * 255)) < 255
