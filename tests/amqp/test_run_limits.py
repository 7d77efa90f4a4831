"""Runs on the workers that give more than can be kept: they end at once, whatever they wait for meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import atasks
from atasks import EncodeError, PayloadTooLarge, QueueFull, Transport, atask
from atasks.pipeline import Handle, collect, flat_map, map
from atasks.testing import soon, until
from tests.amqp.conftest import Connect
from tests.pace import keeping_pace

PROMPT = 1.0
"""Seconds within which a failure is known, where nothing else keeps the machine busy."""
LIMIT = 20_000
"""Bytes of a result."""

flying = 0


@pytest.fixture(autouse=True)
def forget() -> None:
    global flying
    flying = 0


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@atask
async def blow_up(x: int) -> bytes:
    """A tenth of what a result may have."""
    return bytes([x]) * (LIMIT // 10)


class Once:
    """Arrives, and goes no further."""

    def __init__(self, arrived: bool = False) -> None:
        self.arrived = arrived

    def __reduce__(self) -> Any:
        if self.arrived:
            raise TypeError("not again")
        return Once, (True,)


@atask
async def wait_for_ever(x: Any) -> Any:
    global flying
    flying += 1
    try:
        await asyncio.Event().wait()
    finally:
        flying -= 1


@atask
async def large_at_three(x: int) -> bytes:
    """The largest result that there can be: with what a note has besides, it is too large. Others take long."""
    return bytes(LIMIT - 50) if x == 3 else await wait_for_ever(x)


@atask
async def once_at_three(x: int) -> Any:
    return Once() if x == 3 else await wait_for_ever(x)


@atask
async def same(x: Any) -> Any:
    return x


async def fails(handle: Handle[Any], kind: type[Exception], *texts: str) -> None:
    """The run fails at once with an error of this class and text; and its calls end."""
    async with keeping_pace() as pace:
        for number in (len(handle.task_ids) - 1, 1):
            with pytest.raises(kind) as caught:
                await soon(handle.step(number))
            told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
            for text in texts:
                assert text in told
        assert pace.seconds < PROMPT
    await until(lambda: not flying)


@pytest.mark.parametrize("workers", [1, 20])
async def test_a_stage_of_too_much_ends_the_run_while_the_next_one_is_busy(connect: Connect, workers: int) -> None:
    async with connect() as transport:
        transport.max_payload = LIMIT
        handle = await soon((flat_map(upto) | map(blow_up) | map(wait_for_ever, workers=workers)).submit(11))
        await fails(handle, PayloadTooLarge, "the result of stage 'blow_up' has", f"limit of {LIMIT}")


async def test_so_does_one_whose_items_are_far_ahead(connect: Connect) -> None:
    async with connect() as transport:
        transport.max_payload = LIMIT
        pipeline = flat_map(upto) | map(blow_up) | map(same) | collect(2) | map(wait_for_ever, workers=2)
        handle = await soon(pipeline.submit(11))
        await fails(handle, PayloadTooLarge, "the result of stage 'blow_up' has", f"limit of {LIMIT}")


async def test_an_item_of_too_much_ends_the_run_while_others_are_busy(connect: Connect) -> None:
    async with connect() as transport:
        transport.max_payload = LIMIT
        handle = await soon((flat_map(upto) | map(large_at_three) | collect(2) | map(same)).submit(11))
        await fails(handle, PayloadTooLarge, "in stage 'large_at_three', at item (3,)", f"limit of {LIMIT}")


async def test_an_item_that_cannot_be_noted_ends_the_run_while_others_are_busy(connect: Connect) -> None:
    async with connect():
        handle = await soon((flat_map(upto) | map(once_at_three) | collect(2) | map(same)).submit(11))
        await fails(handle, EncodeError, "in stage 'once_at_three', at item (3,)")


@pytest.fixture(params=["loopback", "local"])
def roomless(request: pytest.FixtureRequest) -> Connect:
    """A `connect` whose transport has room for a few results only."""

    @asynccontextmanager
    async def local() -> AsyncIterator[Transport]:
        path = request.getfixturevalue("socket_path")
        async with (
            atasks.connect(f"unix://{path}", hub=True, workers=0, keep_bytes=LIMIT),
            atasks.serve(f"unix://{path}", hub=False, grace=0) as worker,
        ):
            yield worker.transport

    if request.param == "local":
        return local
    return lambda: atasks.connect("loopback:", keep_bytes=LIMIT)


async def test_no_room_for_what_a_stage_gave_ends_the_run_while_the_next_one_is_busy(roomless: Connect) -> None:
    async with roomless():
        handle = await soon((flat_map(upto) | map(blow_up) | map(wait_for_ever, workers=20)).submit(11))
        await fails(handle, QueueFull, "no room", "in stage 'blow_up'")


async def test_no_room_for_what_an_item_gave_ends_the_run_while_others_are_busy(roomless: Connect) -> None:
    async with roomless():
        handle = await soon((flat_map(upto) | map(large_at_three) | collect(2) | map(same)).submit(11))
        await fails(handle, QueueFull, "no room", "in stage 'large_at_three', at item (3,)")
