"""Calls that have waited: their callers are asked before they begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.msgpack import encode

import atasks
from atasks import atask
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp.worker.doubts import Doubts
from tests.amqp.peer import Peer

CALL, REPLY, CANCEL, CLAIM, GRANT = 1, 2, 3, 11, 12


@pytest.fixture
def ran() -> list[int]:
    """The numbers of the calls that began."""
    return []


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("kind", ["one", "batch", "thread", "stream", "at_most_once"])
async def test_calls_of_every_kind_that_were_withdrawn_do_not_begin(
    amqp_url: str, prefix: str, amqp_leaks: None, ran: list[int], kind: str, queue_type: str
) -> None:
    namespace = f"doubts-{prefix}"

    @atask(namespace=namespace, name="one")
    async def one(number: int) -> None:
        ran.append(number)

    @atask(namespace=namespace, name="thread", executor="thread")
    def thread(number: int) -> None:
        ran.append(number)

    @atask(namespace=namespace, name="stream")
    async def stream(number: int) -> AsyncIterator[int]:
        ran.append(number)
        yield number

    async def read(number: int) -> None:
        async for _ in stream(number):
            pass

    calls: dict[str, Any] = {
        "one": one,
        "batch": one.options(batch=10),
        "thread": thread,
        "stream": read,
        "at_most_once": one.options(delivery="at_most_once"),
    }
    options: dict[str, Any] = {"prefix": prefix, "namespace": namespace, "queue_type": queue_type}
    async with atasks.serve(amqp_url, grace=0, threads=2, **options):
        pass  # there are queues
    async with atasks.connect(amqp_url, prefix=prefix, namespace=namespace):
        made = [asyncio.create_task(calls[kind](number)) for number in range(20)]
        await asyncio.sleep(0.1)
        for call in made[::2]:
            call.cancel()
        await asyncio.wait(made[::2])
        async with atasks.serve(amqp_url, grace=0, threads=2, concurrency=4, **options) as worker:
            await soon(asyncio.gather(*made[1::2]))
            assert sorted(ran) == list(range(1, 20, 2))
            await until(lambda: worker.held == 0)


def _call(call_id: str, age: float, number: int = 0, **fields: Any) -> list[Any]:
    sent_ms = int((time.time() - age) * 1000)
    return [CALL, 1, call_id, "note", encode([[number], {}]), "msgpack", None, sent_ms, *fields.values()]


@pytest.fixture
def noting(site: Site, ran: list[int]) -> Site:
    """A worker, which takes MessagePack, of an atask that notes that it began."""
    atasks.MsgpackCodec(site.namespace)

    @site.atask(name="note")
    async def note(number: int) -> int:
        ran.append(number)
        return number

    return site


async def test_many_calls_are_asked_for_in_one_message(noting: Site, peer: Peer, ran: list[int]) -> None:
    async with noting.open(concurrency=30):
        worker = noting.worker.id
        await peer.send(*(_call(f"call-{number:02}", 60, number) for number in range(20)))
        claims = await peer.answer()
        assert [claim[:7] for claim in claims] == [
            [CLAIM, 1, f"call-{number:02}", 1, f"call-{number:02}", worker, False] for number in range(20)
        ]
        assert ran == []
        grants = [[GRANT, 1, claim[2], claim[4], number % 2 == 0] for number, claim in enumerate(claims)]
        await peer.control(encode(grants), f"worker:{worker}")
        answered = [reply[2] for reply in await peer.answers(10) if reply[0] == REPLY]
        assert sorted(answered) == [f"call-{number:02}" for number in range(0, 20, 2)]
        assert sorted(ran) == list(range(0, 20, 2))
        await noting.check_quiet()


@pytest.mark.parametrize("age", [0.0, None])
async def test_calls_that_came_just_now_are_not_asked_for(
    noting: Site, peer: Peer, ran: list[int], age: float | None
) -> None:
    async with noting.open():
        await asyncio.sleep(0.3)
        call = _call("call", age or 0.0, 7)
        await peer.send(call if age is not None else [*call[:7], 0])
        ((tag, *_),) = await peer.answer()
        assert (tag, ran) == (REPLY, [7])


async def test_a_worker_that_drains_gives_back_what_is_in_doubt(noting: Site, peer: Peer, ran: list[int]) -> None:
    async with noting.open():
        await peer.send(_call("call", 60, 1))
        ((tag, _, _, _, copy, *_),) = await peer.answer()
        assert (tag, copy) == (CLAIM, "call")
    async with noting.open():
        ((tag, _, call_id, attempt, copy, worker, *_),) = await peer.answer()
        assert (tag, call_id, attempt, copy, worker) == (CLAIM, "call", 1, "call", noting.worker.id)
        await peer.control(encode([[GRANT, 1, "call", "call", True]]), f"worker:{worker}")
        ((tag, *_),) = await peer.answer()
        assert (tag, ran) == (REPLY, [1])


async def test_a_call_that_is_withdrawn_while_it_is_in_doubt(noting: Site, peer: Peer, ran: list[int]) -> None:
    async with noting.open():
        await peer.send(_call("call", 60))
        assert (await peer.answer())[0][0] == CLAIM
        await peer.control(encode([[CANCEL, 1, ["call"]]]), f"queue:{noting.namespace}:default")
        await noting.check_quiet()
        assert ran == []


async def test_a_caller_that_is_there_and_silent_does_not_keep_its_calls_for_ever(
    noting: Site, peer: Peer, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doubts, "patience", 1.5)
    async with noting.open(concurrency=1):
        await peer.send(_call("old", 60, 1))
        await peer.send([*_call("kept", 60, 2), 1, 3, 0, 1])  # to run without a caller
        for number in range(3, 6):  # others go on meanwhile
            await peer.send([*_call(f"new-{number}", 0, number)[:7], 0])
        replies: list[str] = []
        async with asyncio.timeout(60):
            while len(replies) < 5:
                replies += [envelope[2] for envelope in await peer.answer() if envelope[0] == REPLY]
        assert replies[3:] == ["kept", "old"], replies


async def test_calls_are_dropped_whose_reply_queue_is_gone(
    noting: Site, peer: Peer, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doubts, "patience", 3600.0)  # nobody waits for answers of those that are gone
    async with noting.open(concurrency=2):
        for number in range(12):
            await peer.send(_call(f"call-{number}", 60, number), reply_to=f"{peer.prefix}.r.nobody")
        await peer.send([*_call("mine", 0, 99)[:7], 0])
        assert (await peer.answer())[0][2] == "mine"
        await noting.check_quiet()
        assert ran == [99]
