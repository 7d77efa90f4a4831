"""Records in memory: their time, and how much of them there is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import atasks
from atasks import PayloadTooLarge, QueueFull, UnknownRun, atask
from atasks.pipeline import stage
from atasks.testing import soon
from atasks.transport.records.contract import Record, again_id
from atasks.transport.records.store import OVERHEAD, RecordStore
from atasks.wire import VERSION, Call, Kept, Reply, Status

ROOM = 10_000


@atask
async def make(size: int) -> bytes:
    return bytes(size)


@atask
async def measure(content: bytes) -> int:
    return len(content)


def record(name: str, size: int = 0, expires: float = 60.0) -> Record:
    call = Call(VERSION, name, "a.task", bytes(size), "none")
    return Record(Kept(VERSION, name, "default", int(expires * 1000)), call)


def reply(name: str, size: int = 0) -> Reply:
    return Reply(VERSION, name, Status.VALUE, bytes(size), "none")


def new_store(room: int = ROOM) -> tuple[RecordStore[str], list[str]]:
    forgotten: list[str] = []
    return RecordStore(room, lambda key, _: forgotten.append(key)), forgotten


async def test_the_bytes_of_all_records_are_bounded() -> None:
    store, forgotten = new_store()
    opened = 0
    while store.open(f"{opened}", record(f"{opened}", 1000)):
        opened += 1
    assert opened == ROOM // (1000 + OVERHEAD)
    assert not store.add("0", reply("0.1", 1001))
    assert store.size <= ROOM
    assert not forgotten
    store.forget("1")
    assert store.add("0", reply("0.1", 1000))
    store.close()
    assert store.size == len(store) == 0


async def test_what_has_ended_and_was_read_makes_room_those_first_that_were_used_least_lately() -> None:
    store, forgotten = new_store(7_600)  # three of 2 000 bytes and one of 1 500
    for name in ("unread", "old", "used", "running"):
        assert store.open(name, record(name, 1000))
        if name != "running":
            store.end(name, reply(name))
    for name in ("used", "old", "running"):
        assert store.read(name) is not None
    assert store.read("used") is not None
    assert store.open("new", record("new", 1000))
    assert forgotten == ["old"]
    assert store.open("newer", record("newer", 1000))
    assert forgotten == ["old", "used"]
    assert not store.open("newest", record("newest", 1000))
    assert forgotten == ["old", "used"]
    assert {name for name in ("unread", "running", "new", "newer") if name in store} == {
        "unread",
        "running",
        "new",
        "newer",
    }
    store.close()


async def test_how_a_call_ended_is_kept_even_where_its_value_has_no_room() -> None:
    store, _ = new_store()
    assert store.open("a", record("a"))
    store.end("a", reply("a", ROOM))
    kept = store.find("a")
    assert kept is not None
    assert kept.ending is not None
    assert kept.ending.status == Status.TOO_LARGE
    store.close()


async def test_a_record_goes_when_it_was_not_used_for_its_time() -> None:
    store, forgotten = new_store()
    assert store.open("short", record("short", expires=0.2))
    assert store.open("used", record("used", expires=1.5))
    for _ in range(18):
        await asyncio.sleep(0.1)
        assert store.find("used") is not None
    assert forgotten == ["short"]
    store.close()
    await asyncio.sleep(1.6)
    assert forgotten == ["short"]


async def test_a_call_takes_the_place_of_one_that_has_ended() -> None:
    store, forgotten = new_store()
    first = record("a")
    assert store.open("a", first)
    retried = [Call(VERSION, again_id("a"), "a.task", bytes(1000), "none") for _ in range(2)]
    assert store.go_on("a", retried[0]) is False  # it has not ended
    store.end("a", Reply(VERSION, "a", Status.RAISED, b"", "none"))
    assert store.read("a") is first
    assert store.go_on("a", Call(VERSION, "a+2-x", "a.task", b"", "none")) is False  # the next one is the first
    assert store.go_on("a", Call(VERSION, "b+1-x", "a.task", b"", "none")) is False  # it is another's
    assert [store.go_on("a", call) for call in retried] == [True, False]
    assert (first.id, first.call.id, first.ending) == ("a", retried[0].id, None)
    assert [first.has_ended(name) for name in ("a", retried[0].id)] == [True, False]
    assert store.size > 1000
    assert not store.open("big", record("big", ROOM - 1000))  # what goes on makes no room for others
    store.end("a", reply(retried[0].id))
    later = Call(VERSION, again_id(retried[0].id), "a.task", bytes(ROOM), "none")
    assert store.go_on("a", later) is None  # there is no room
    assert first.ending is not None
    assert not forgotten
    store.close()


async def test_the_first_reply_of_an_id_counts_and_is_counted_once() -> None:
    store, _ = new_store()
    assert store.open("a", record("a"))
    assert store.add("a", reply("a.0", 100))
    before = store.size
    assert store.add("a", reply("a.0", 200))
    assert store.size == before
    store.close()


async def test_a_run_for_which_there_is_no_room_is_refused_or_says_so() -> None:
    async with atasks.connect("loopback:", keep_bytes=20_000):
        handle = await soon((stage(make) | stage(measure)).submit(30_000))
        with pytest.raises(QueueFull, match=r"no room.*keep_bytes"):
            await soon(handle)
        handle = await soon(stage(make).submit(30_000))
        with pytest.raises(PayloadTooLarge, match="keep_bytes"):
            await soon(handle)
        with pytest.raises(QueueFull, match="keep_bytes"):
            await soon(stage(measure).submit(bytes(30_000)))
        assert await soon(await soon(stage(make).submit(10))) == bytes(10)


async def test_runs_that_were_read_make_room_for_others() -> None:
    async with atasks.connect("loopback:", keep_bytes=50_000):
        handles = []
        for _ in range(20):
            handles.append(await soon(stage(make).submit(10_000)))
            assert await soon(handles[-1]) == bytes(10_000)
        assert await soon(handles[-1]) == bytes(10_000)
        with pytest.raises(UnknownRun):
            await soon(handles[0])


@pytest.mark.parametrize(
    ("value", "kind"), [(0, ValueError), (2**31, ValueError), (True, TypeError), (1.5, TypeError)]
)
@pytest.mark.parametrize("url", ["loopback:", "local:"])
async def test_a_number_of_bytes_that_makes_no_sense(url: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="keep_bytes"):
        async with atasks.connect(url, keep_bytes=value):
            pass


async def test_all_that_a_record_holds_counts() -> None:
    """Whoever may submit may choose every text of a call, and not its payload alone."""
    for part in ({"task": "t" * 900}, {"codec": "c" * 900}, {"context": {"name": bytes(900)}}):
        store, _ = new_store()
        opened = 0
        call = Call(VERSION, "an-id", part.get("task", "a.task"), b"", part.get("codec", "none"))  # type: ignore[arg-type]
        call.context = part.get("context")  # type: ignore[assignment]
        while store.open(f"{opened}", Record(Kept(VERSION, f"{opened}", "default", 60_000), call)):
            opened += 1
        assert opened <= ROOM // (900 + OVERHEAD)
        store.close()
