"""Large payloads, which travel beside their messages: whole, in bounds, and only to those who take them."""

# Private attributes: `SocketLink._payloads`, and its `_files`: the memory that a claim may take, or a payload
# has of which the rest never comes.

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import weakref
from typing import Any

import pytest
from msgspec import structs

import atasks
from atasks import atask
from atasks.testing import until
from atasks.transport.backends.local.beside import (
    BESIDE,
    BESIDE_BYTES,
    CLAIMED_BYTES,
    MAX_BESIDE,
    OVERHEAD,
    Arriving,
)
from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.hub import listener as hosting
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.link import HIGH_WATER
from atasks.transport.backends.local.messages import (
    PROTOCOL,
    Begin,
    Deliver,
    GiveBack,
    Hello,
    Message,
    Request,
    Stop,
    Welcome,
)
from atasks.wire import VERSION, Call, End, Item, Reply, Status
from tests.faults.history import settled
from tests.local.around_hub import of, process
from tests.local.test_conversation import arrive, conversation, frame, link
from tests.waiting import DEADLINE


def call(payload: bytes, call_id: str = "an-id") -> Call:
    return Call(VERSION, call_id, "a.task", payload, "pickle")


def reply(payload: bytes) -> Reply:
    return Reply(VERSION, "an-id", Status.VALUE, payload, "pickle")


def announced(*payloads: bytes) -> bytes:
    return b"".join((BESIDE + len(payload)).to_bytes(4, "big") + payload for payload in payloads)


LARGE = [random.randbytes(size) for size in (BESIDE_BYTES, 1_000_000, 300_001)]
MESSAGES: list[Message] = [
    Request("q", call(LARGE[0])),
    Request("q", call(b"")),
    Deliver(call(LARGE[1])),
    Stop(),
    GiveBack(call(LARGE[2])),
    Begin(1, "q", call(LARGE[0]), 0, True, 1000),
    reply(LARGE[1]),
    reply(b"small"),
    End(VERSION, "an-id", 3, reply(LARGE[2])),
    Item(VERSION, "an-id", 0, LARGE),
    Item(VERSION, "an-id", 0, [b"small", LARGE[0]]),
    Item(VERSION, "an-id", 0, []),
]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("slow", [True, False])
async def test_messages_arrive_as_they_were_sent(path: str, beside: bool, slow: bool) -> None:
    received: list[object] = []
    async with conversation(path) as (here, there):
        assert there.transport is not None
        there.receive, here.beside = received.extend, beside
        if slow:
            there.transport.pause_reading()
        sent = [structs.replace(message) for message in MESSAGES]
        for message in [*sent, *sent]:
            here.send(message, 10 * 2**20 if message not in (Stop(), MESSAGES[1]) else 0)
        assert sent == MESSAGES  # which a caller may send again
        assert here.clogged == slow or here.unsent > HIGH_WATER
        there.transport.resume_reading()
        await until(lambda: len(received) == 2 * len(MESSAGES), "all has arrived")
        await until(lambda: not here.unsent and not here.clogged, "nothing waits")
    assert received == MESSAGES * 2


@pytest.mark.parametrize("size", [1, 3, 70_000, 10**7])
async def test_payloads_may_arrive_in_any_pieces(size: int) -> None:
    payloads = [b"ab", b"c"] if size < 10 else LARGE[:2]
    data = (
        frame(encode([Stop()]))
        + announced(payloads[0])
        + frame(encode([Request("q", call(b""))]))
        + announced(*payloads)
        + frame(encode([Item(VERSION, "an-id", 0, [b"", b""])]))
        + frame(encode([Stop(), reply(b"after")]))
    )
    here, received = link()
    for start in range(0, len(data), size):
        arrive(here, data[start : start + size])
    expected = [
        Stop(),
        Request("q", call(payloads[0])),
        Item(VERSION, "an-id", 0, payloads),
        Stop(),
        reply(b"after"),
    ]
    assert received == expected


async def test_a_link_that_is_lost_in_the_middle_of_a_payload_keeps_none_of_its_memory() -> None:
    here, received = link()
    arrive(here, announced(LARGE[1])[:-1])
    (memory,) = map(weakref.ref, here._payloads._files)
    here.connection_lost(None)
    assert memory() is None
    assert received == []


def test_a_payload_that_is_dropped_half_way_has_python_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 tells of a file that the garbage collector cannot close."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    arriving = Arriving()
    memory = arriving.begin(BESIDE_BYTES)
    (dropped,) = map(weakref.ref, arriving._files)
    circle: list[object] = [arriving, memory]
    circle.append(circle)
    del arriving, memory, circle
    gc.collect()
    assert (dropped(), told) == (None, [])


async def test_a_payload_that_is_only_claimed_takes_little_memory() -> None:
    here, received = link()
    arrive(here, (BESIDE + 2**31 - 1).to_bytes(4, "big") + b"nothing of the kind")
    assert here._payloads.memory <= CLAIMED_BYTES + OVERHEAD
    assert received == []


async def test_payloads_and_their_message_share_a_bound() -> None:
    body = encode([Item(VERSION, "an-id", 0, [b"", b""])])
    for more, expected in ((0, 1), (-1, 0)):
        here, received = link()
        here.max_frame = 4 + len(body) + more
        arrive(here, announced(b"ab", b"cd") + frame(body))
        assert len(received) == expected


async def test_small_payloads_count_what_they_cost() -> None:
    here, _ = link()
    arrive(here, announced(*[b"x"] * 1000))
    assert here._payloads.memory > 100_000


async def test_nothing_behind_what_was_refused_is_taken() -> None:
    here, received = link()
    arrive(here, frame(encode([Stop()])) + announced(b"x") + frame(encode([Stop()])) + frame(encode([Stop()])))
    assert received == [Stop()]


HOSTILE = {
    "an empty one": announced(b""),
    "beside one that is there": announced(b"x") + frame(encode([reply(b"y")])),
    "beside two messages": announced(b"x") + frame(encode([reply(b""), reply(b"")])),
    "beside none": announced(b"x") + frame(encode([])),
    "beside one that has none": announced(b"x") + frame(encode([Stop()])),
    "two beside one": announced(b"x", b"y") + frame(encode([reply(b"")])),
    "fewer than items": announced(b"x") + frame(encode([Item(VERSION, "an-id", 0, [b"", b""])])),
    "beside no list": announced(b"x") + frame(b"\xc1"),
    "very many": announced(*[b"x"] * (MAX_BESIDE + 1)),
    "too long together": announced(b"x" * 5) + (BESIDE + 2**31 - 1).to_bytes(4, "big"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_who_sends_what_makes_no_sense_is_disconnected(host: Host, path: str, data: bytes) -> None:
    async with process(path) as (here, received):
        assert here.transport is not None
        here.transport.write(data)
        await settled(here.ended, "it is disconnected")
        assert len(received) == 1
    async with process(path) as (polite, received):
        polite.send(Request("nowhere", call(b"x"), wait=False))
        await until(lambda: len(received) == 2, "the others go on")


async def test_before_hello_a_payload_is_a_small_one(host: Host, path: str) -> None:
    async with process(path, namespace=None) as (here, _):
        assert here.transport is not None
        here.transport.write(announced(bytes(3 * 2**20), bytes(3 * 2**20)))
        await settled(here.ended, "it is disconnected")


async def test_half_sent_payloads_count_until_they_are_whole_or_their_process_is_gone(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "MAX_HALF_SENT", 40 * 2**20)
    beginning = (BESIDE + 60 * 2**20).to_bytes(4, "big") + bytes(3 * 2**20)
    async with process(path) as (first, _), process(path) as (second, _), process(path) as (third, received):
        assert first.transport is not None
        assert second.transport is not None
        first.transport.write(beginning)
        await until(lambda: host.half_sent > 30 * 2**20, "the first one has room")
        second.transport.write(beginning)
        await settled(second.ended, "the second one is disconnected")
        first.abort()  # in the middle of its payload
        await until(lambda: host.half_sent == 0, "the room is free again")
        third.beside = True
        payload = bytes(30 * 2**20)
        third.send(Request("nowhere", call(payload), wait=False), len(payload))
        await until(lambda: len(received) == 2, "there is room again")
        await until(lambda: host.half_sent == 0, "a message that is whole takes no room")


async def test_a_request_that_cannot_be_read_is_answered(host: Host, path: str) -> None:
    async with process(path) as (here, received):
        assert here.transport is not None
        here.transport.write(announced(LARGE[0]) + frame(encode([Request("q", call(b"", "an id\n"))])))
        here.send(Request("q", structs.replace(call(b"", "long-name"), task="n" * 5000)))
        await until(lambda: of(received, Reply), "the request behind it is refused by name")
        (refusal,) = of(received, Reply)[-1:]
        assert isinstance(refusal, Reply)
        assert (refusal.id, refusal.status) == ("long-name", Status.DECODE_ERROR)


@pytest.mark.parametrize("takes", [True, False])
async def test_an_older_side_gets_payloads_within_messages(host: Host, path: str, takes: bool) -> None:
    """`Hello` of an older version, which says nothing of that, reads as one that says no."""
    async with process(path, namespace=None) as (here, received):
        here.send(Hello(PROTOCOL, "default", os.getpid(), takes))
        await until(lambda: received, "it is welcome")
        assert received == [Welcome(os.getpid(), True)]
        assert [peer.link.beside for peer in host.hub.peers] == [takes]
    assert (
        encode([Hello(PROTOCOL, "default", 1, False)])[1:-1] == encode([[32, PROTOCOL, "default", 1, False]])[1:-1]
    )


@atask
async def there_and_back(value: Any) -> Any:
    return value


VALUES: dict[str, Any] = {
    "bytes": LARGE[1],
    "bytearray": bytearray(LARGE[1]),
    "text": "ä" * 300_000,
    "within": {"a": [LARGE[0], (LARGE[1], 1)], "b": bytearray(LARGE[2]), "c": "small"},
    "the same twice": [LARGE[0], LARGE[0]],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_large_values_travel_between_processes(value: Any) -> None:
    async with atasks.local(workers=1, modules=[__name__]):
        found = await asyncio.wait_for(there_and_back(value), DEADLINE)
    assert found == value
    assert type(found) is type(value)
