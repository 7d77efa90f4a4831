"""Records over a restart of the broker."""

from __future__ import annotations

import asyncio

import pytest

import atasks
from atasks.options import TaskOptions
from atasks.testing import soon
from atasks.wire import VERSION, Reply, Status
from tests.amqp.records import double, ended, new_call, records_of, step, value
from tests.broker import Broker


@pytest.mark.usefixtures("cleanup")
async def test_a_record_outlives_who_began_it_and_the_broker(node: Broker, prefix: str) -> None:
    url = node.url
    async with atasks.serve(url, prefix=prefix, grace=0), atasks.connect(url, prefix=prefix) as transport:
        call = await new_call("double", 4)
        await records_of(transport).begin(call, TaskOptions())
        await soon(records_of(transport).wait(call.id, ended, steps=False))
    await asyncio.to_thread(node.stop)
    await asyncio.to_thread(node.start)
    async with atasks.connect(url, prefix=prefix) as transport:
        for _ in range(2):
            assert await value(await soon(records_of(transport).read(call.id))) == 8


@pytest.mark.usefixtures("cleanup")
async def test_who_waits_goes_on_waiting_over_a_restart_of_the_broker(node: Broker, prefix: str) -> None:
    url = node.url
    async with atasks.serve(url, prefix=prefix, grace=0), atasks.connect(url, prefix=prefix) as transport:
        records = records_of(transport)
        call = await new_call("never", 4)
        await records.begin(call, TaskOptions())
        waiting = asyncio.create_task(records.wait(call.id, ended, steps=False))
        await records.add(call.id, step(call, 0))
        await asyncio.to_thread(node.stop)
        adding = asyncio.create_task(records.add(call.id, Reply(VERSION, call.id, Status.VALUE, b"end", "none")))
        await asyncio.to_thread(node.start)
        await soon(adding)
        assert len((await soon(waiting)).replies) == 2
        assert await soon(double(2)) == 4  # the worker is back, and can clean up
