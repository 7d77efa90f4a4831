"""Reports over RabbitMQ: what a plain call sends, and what a hostile worker may cost its caller."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec

from atasks import MsgpackCodec, Progress, current_call
from atasks.testing import Site, soon, until
from tests.amqp.peer import Peer

CALL, REPLY = 1, 2
REPORT = 13
VALUE = 0
encode = msgspec.msgpack.encode


async def test_plain_call_sends_no_reports(site: Site, peer: Peer) -> None:
    MsgpackCodec(site.namespace)

    @site.atask(name="work")
    async def work() -> int:
        current_call().report(1, 2)
        return 1

    async with site.open():
        asked = [CALL, 1, "asked", "work", encode([[], {}]), "msgpack", *[None] * 17, True]
        asked[7:14] = [0, 1, 3, 0, 0, None, None]
        asked[15], asked[18], asked[19], asked[21] = 0, False, "", 1
        await peer.send([CALL, 1, "plain", "work", encode([[], {}]), "msgpack"])
        assert [fields[:3] for fields in await peer.answers(1)] == [[REPLY, 1, "plain"]]
        await peer.send(asked)
        assert [fields[:3] for fields in await peer.answers(2)] == [[REPORT, 1, "asked"], [REPLY, 1, "asked"]]
        assert peer.unread.empty()


async def test_reports_that_make_no_sense_or_never_end_cost_one_place(site: Site, peer: Peer) -> None:
    MsgpackCodec(site.namespace)

    @site.atask(name="work")
    async def work() -> int:
        return 1

    requests = await peer.declare_work_queue("default")
    got: list[Progress] = []
    async with site.open(serve=False), work.watch() as call:
        request = await soon(requests.get())
        ((_, _, call_id, *_),) = msgspec.msgpack.decode(request.body)

        async def send(*reports: list[Any]) -> None:
            await peer.send(*reports, queue=request.reply_to)

        async def read() -> None:
            async for progress in call.progress():
                got.append(progress)  # noqa: PERF401  # read while it grows

        reading = asyncio.create_task(read())
        await send(
            [REPORT, 1, "another-id", 1, 2], [REPORT, 1, call_id, math.nan], [REPORT, 1, call_id, 1, math.inf]
        )
        await send([REPORT, 1, call_id, 1, 2, "x" * 201])
        await send([REPORT, 1, call_id, "1"], [REPORT, 1, "a\nb", 1], [REPORT, 1, call_id, 1, 2, "", 0])
        await send([REPORT, 1, call_id, 1, 2, "good", 2])
        await until(lambda: got == [Progress(1, 2, "good", 2)])
        await send([REPORT, 1, call_id, 9, 9, "late", 1])
        many = [[REPORT, 1, call_id, number, None, "x" * 200, 2] for number in range(1000)]
        for _ in range(50):
            await send(*many)
        await send([REPLY, 1, call_id, VALUE, encode(5), "msgpack"])
        assert await soon(call) == 5
        await soon(reading)
        assert got[-1].done == 999
        assert len(got) < 1000
        assert all(progress.note != "late" for progress in got)
