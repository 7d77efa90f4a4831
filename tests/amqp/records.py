"""Calls that are kept, and what their records hold."""

from __future__ import annotations

import asyncio

from atasks import Transport, atask
from atasks.codecs import get_codec
from atasks.current import new_call_id
from atasks.transport.records.contract import Record, Records
from atasks.wire import VERSION, Call, Reply, Status


@atask
async def double(number: int) -> int:
    return number * 2


@atask
async def never(number: int) -> int:
    await asyncio.Event().wait()
    return number


def records_of(transport: Transport) -> Records:
    assert transport.records is not None
    return transport.records


async def new_call(task: str, number: int) -> Call:
    codec = get_codec()
    return Call(VERSION, new_call_id(), f"{__name__}.{task}", await codec.encode(((number,), {})), codec.name)


def step(call: Call, number: int) -> Reply:
    return Reply(VERSION, f"{call.id}.{number}", Status.VALUE, b"%d" % number, "none")


def ended(record: Record) -> bool:
    return record.ending is not None


async def value(record: Record) -> object:
    assert record.ending is not None
    return await get_codec().decode(record.ending.payload)
