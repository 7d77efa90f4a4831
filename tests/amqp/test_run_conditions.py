"""Runs of pipelines under other conditions: one slot, other codecs and namespaces, lost requests, many at once."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

import atasks
from atasks import MsgpackCodec, atask, get_router
from atasks.codecs import get_codec
from atasks.namespaces import namespaces
from atasks.pipeline import Handle, attach, collect, flat_map, group, map, stage
from atasks.testing import soon
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.amqp.conftest import Connect, Meeting
from tests.broker import Broker
from tests.pace import keeping_pace

MANY = 100

colour: contextvars.ContextVar[str] = atasks.carry(contextvars.ContextVar("colour_of_runs"))


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@atask
async def square(x: int) -> int:
    return x * x


@atask
async def total(xs: list[int]) -> int:
    return sum(xs)


@atask
async def hue(x: int) -> str:
    return colour.get()


@atask(queue="elsewhere")
async def aside(x: int) -> int:
    return -x


@atask
async def submits(n: int) -> str:
    """A run that a call submits is no part of that call."""
    handle = await (stage(upto) | stage(total)).submit(n)
    return handle.id


async def test_one_slot_is_enough_for_runs_and_their_stages(meeting: Meeting) -> None:
    url, options = meeting
    async with atasks.serve(url, **options, concurrency=1):
        pipeline = flat_map(upto) | map(square, workers=5) | collect() | stage(total)
        handles = [await soon(pipeline.submit(5)) for _ in range(3)]
        assert [await soon(handle) for handle in handles] == [30, 30, 30]


async def test_many_runs_at_once_all_end(meeting: Meeting) -> None:
    url, options = meeting
    async with atasks.serve(url, **options), atasks.connect(url, **options):
        pipeline = stage(upto) | stage(total)
        handles: list[Handle[int]] = await soon(asyncio.gather(*(pipeline.submit(n) for n in range(MANY))))
        values = await soon(asyncio.gather(*(_value(handle) for handle in handles)))
        assert values == [sum(range(n)) for n in range(MANY)]


async def _value(handle: Handle[Any]) -> Any:
    return await handle


async def test_stages_on_other_queues_run_there(meeting: Meeting) -> None:
    url, options = meeting
    async with (
        atasks.serve(url, **options, queues=["default"]),
        atasks.serve(url, **options, queues=["elsewhere"]),
    ):
        assert await soon(await soon((stage(square) | stage(aside)).submit(3))) == -9
        assert await soon(await soon((stage(aside) | stage(square)).submit(3))) == 9


async def test_runs_need_no_pickles(connect: Connect) -> None:
    before = get_codec()
    MsgpackCodec()
    try:
        async with connect():
            pipeline = flat_map(upto) | map(square) | collect() | group(total, total)
            handle: Handle[Any] = await soon(pipeline.submit(4))
            assert await soon(handle) == [14, 14]
            assert await soon(attach(handle.dumps()).step(1)) == [0, 1, 4, 9]
    finally:
        namespaces.register("default", codec=before)


async def test_carried_variables_reach_the_stages(connect: Connect) -> None:
    colour.set("green")
    async with connect():
        assert await soon(await soon((stage(square) | stage(hue)).submit(3))) == "green"


async def test_a_run_that_a_call_submits_outlives_the_call(connect: Connect) -> None:
    async with connect():
        assert await soon(attach(await soon(submits(5)))) == 10


@pytest.mark.usefixtures("amqp_leaks")
async def test_runs_go_over_quorum_queues(amqp_url: str, prefix: str) -> None:
    async with atasks.serve(amqp_url, prefix=prefix, queue_type="quorum"):
        assert await soon(await soon((stage(upto) | stage(total)).submit(5))) == 10


@pytest.mark.usefixtures("amqp_leaks")
async def test_who_waits_for_a_run_sends_a_request_again_that_got_lost(
    controllable_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverdueCalls, "patience", 0.2)
    monkeypatch.setattr(OverdueCalls, "pause", 0.1)
    url = controllable_broker.url
    async with atasks.serve(url, prefix=prefix):
        pass  # declares the queue
    async with atasks.connect(url, prefix=prefix):
        handle = await soon((stage(upto) | stage(total)).submit(5))
        with controllable_broker.channel() as channel:
            channel.queue_purge(f"{prefix}.q.default.default")
        waiting = asyncio.ensure_future(_value(handle))
        async with atasks.serve(url, prefix=prefix):
            assert await soon(waiting) == 10


async def test_a_failing_run_is_known_within_a_second(meeting: Meeting) -> None:
    url, options = meeting
    async with atasks.serve(url, **options), atasks.connect(url, **options):
        get_router().registry.unregister(total.name)
        try:
            async with keeping_pace() as pace:
                handle = await soon((stage(upto) | stage(total) | stage(square)).submit(5))
                with pytest.raises(atasks.UnknownTask):
                    await soon(handle.step(2))
            assert pace.seconds < 1
        finally:
            get_router().register_atask(total.name, total.local)
