"""Small or ordinary messages that would take all memory, or seconds, to decode."""

# Private attributes: `sizes._count`: its estimate decides, and the verdict alone would hide how close it is.

from __future__ import annotations

import asyncio
import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import msgspec
import pytest
import zstandard

import atasks
from atasks import DecodeError, MsgpackCodec, ZstdCodec, atask
from atasks.codecs import sizes
from atasks.current import carried, carry
from atasks.wire import Call
from atasks.worker.outcome import decode_arguments

MIB = 2**20

# Tests make their large parameters: each collection of garbage looks through what the session holds.


def array(items: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4) + items * count


@pytest.mark.parametrize(
    "make",
    [
        lambda: array(b"\x90", 32 * MIB),
        lambda: array(b"\x80", 32 * MIB),
        lambda: array(b"\xdc\x00\x00", 12 * MIB),
        lambda: array(b"\xdd\x00\x00\x00\x00", 8 * MIB),
        lambda: array(b"\xa1x", 20 * MIB),
        lambda: array(b"\xa0\x90", 16 * MIB)[:-7],
        lambda: array(b"\x91" * 50 + b"\x90", MIB // 2),
        lambda: array(b"\xcd\x01\x00\x90", 9 * MIB),
        lambda: array(b"\xd9\x01x\x90", 9 * MIB),
    ],
    ids=["arrays", "maps", "16 bits", "32 bits", "texts", "cut off", "deep", "numbers between", "texts between"],
)
async def test_a_document_of_small_things_is_refused(namespace: str, make: Callable[[], bytes]) -> None:
    codec, content = MsgpackCodec(namespace), make()

    async def function(value: Any) -> Any: ...

    arguments = b"\x92" + array(content, 1) + b"\x80"
    tracemalloc.start()
    try:
        started = time.process_time()
        for read in (
            codec.decode(content),
            codec.decode_result(content, function),
            codec.decode_arguments(arguments, function),
        ):
            with pytest.raises(DecodeError, match="would take more than 536870912 bytes of memory"):
                await read
        taken = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(content) + MIB, "nothing is built of it"
    assert taken < 15, "decoding the arrays took 6.5 s each time, and this is under tracemalloc"


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"\x92" + array(b"\x01", 8 * MIB) + b"\x80",
        lambda: b"\x92\x90" + array(b"\xa3abc\x01", 2 * MIB).replace(b"\xdd", b"\xdf", 1),
        lambda: b"\x92" + array(b"\xc0", 8 * MIB),
    ],
    ids=["positional", "named", "cut off"],
)
async def test_many_arguments_are_refused(namespace: str, make: Callable[[], bytes]) -> None:
    codec, content = MsgpackCodec(namespace), make()

    async def function(*values: Any, **named: Any) -> Any: ...

    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"at most 1000000 are taken|not the arguments of a call"):
            await codec.decode_arguments(content, function)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content), "nothing is built of it"
    args, named = await codec.decode_arguments(msgspec.msgpack.encode([[5] * 300_000, {"a": 1}]), function)
    assert (len(args), named) == (300_000, {"a": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(range(3_000_000)),
        lambda: [[n, n + 1] for n in range(500_000)],
        lambda: os.urandom(40 * MIB),
        lambda: ["\u4e2d" * 1000] * 15_000,
        lambda: ["thirty characters of a word....."] * 1_000_000,
        lambda: [os.urandom(30_000), {"key": [1.5, None, True] * 100}] * 500,
    ],
    ids=["numbers", "pairs", "bytes", "text", "words", "mixed"],
)
async def test_honest_large_documents_are_not(namespace: str, make: Callable[[], Any]) -> None:
    value = make()
    content = msgspec.msgpack.encode(value)
    assert await MsgpackCodec(namespace).decode(content) == value


def test_the_count_is_right() -> None:
    value = [
        [],
        {},
        [1, 2],
        {"ab": [0.5]},
        "abc",
        "abcdefgh",
        "x" * 300,
        b"y" * 300,
        2**40,
        -5,
        None,
        [list(range(20))],
    ]
    content = msgspec.msgpack.encode(value)
    assert 4 <= sizes._count(content, 10**9) <= 12
    assert sizes._count(msgspec.msgpack.encode([[]] * 100_000), 10**9) == pytest.approx(100_000, rel=0.01)
    assert sizes._count(b"\xc1" * 100, 10**9) == 0
    assert sizes._count(b"\xc7\xff", 10**9) == 0


async def test_deep_nesting_is_an_error(namespace: str) -> None:
    with pytest.raises(DecodeError):
        await MsgpackCodec(namespace).decode(b"\x91" * 100_000 + b"\xc0")


async def test_a_compressed_bomb_is_refused_before_the_memory_is_taken(namespace: str) -> None:
    codec = ZstdCodec(MsgpackCodec(namespace))
    for content, message in (
        (zstandard.compress(b"\x90" * 50 * MIB, 19), "at most 1000 times its size"),
        (zstandard.compress(b"\x90" * 65 * MIB, 19), r"at most 67108864 are taken \(max_bytes\)"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 2 * MIB), "are taken"),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError, match=message):
                await codec.decode(content)
            assert tracemalloc.get_traced_memory()[1] < MIB
        finally:
            tracemalloc.stop()


async def test_what_shrinks_a_thousandfold_still_arrives(namespace: str) -> None:
    codec = ZstdCodec(MsgpackCodec(namespace))
    for size in (100_000, MIB, 20 * MIB):
        assert await codec.decode(await codec.encode(bytes(size))) == bytes(size)


async def test_arguments_over_the_limit_are_not_decoded(namespace: str) -> None:
    ran: list[int] = []

    @atask(namespace=namespace)
    async def take(value: bytes) -> int:
        ran.append(len(value))
        return len(value)

    @atask(namespace=namespace, executor="thread")
    def blocking(value: bytes) -> int:
        ran.append(len(value))
        return len(value)

    async with atasks.serve("loopback:", namespace=namespace) as worker:
        deliver = worker.deliver

        def deliver_limited(*args: Any, **kwargs: Any) -> None:
            worker.transport.max_payload = 10_000  # the caller of these calls has no limit
            deliver(*args, **kwargs)

        worker.deliver = deliver_limited  # type: ignore[method-assign]
        assert await take(bytes(9_000)) == 9_000
        for task in (take, blocking):
            worker.transport.max_payload = 10**9
            with pytest.raises(DecodeError, match=r"have \d+ bytes, over this worker's limit of 10000"):
                await task(bytes(10_001))
    assert ran == [9_000]


async def test_a_large_document_is_decoded_without_collections(namespace: str) -> None:
    """Each collection looks through all that is there: all calls waited for seconds."""
    codec = MsgpackCodec(namespace)
    content = array(b"\x90", 3_000_000)

    async def function(value: Any) -> Any: ...

    collections: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        collections.append(phase)

    arguments = b"\x92" + array(content, 1) + b"\x80"
    gc.callbacks.append(note)
    try:
        for read in (
            lambda: codec.decode(content),
            lambda: codec.decode_result(content, function),
            lambda: codec.decode_arguments(arguments, function),
        ):
            collections.clear()
            found = await read()
            assert len(collections) <= 4
            assert found
            assert gc.isenabled()
    finally:
        gc.callbacks.remove(note)


def test_garbage_is_collected_again_when_threads_have_decoded_at_the_same_time() -> None:
    first, second = sizes.uncollected(), sizes.uncollected()
    with ThreadPoolExecutor(2) as threads:
        for step in (first.__enter__, second.__enter__):
            threads.submit(step).result()
        threads.submit(first.__exit__, None, None, None).result()
        assert not gc.isenabled()
        threads.submit(second.__exit__, None, None, None).result()
    assert gc.isenabled()


def test_a_program_that_collects_no_garbage_is_left_so() -> None:
    gc.disable()
    try:
        with sizes.uncollected(), sizes.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


async def test_context_variables_of_one_call_share_their_memory(namespace: str) -> None:
    """Each is a little, and all of them are there at a time."""
    codec = ZstdCodec(MsgpackCodec(namespace))
    value = zstandard.compress(array(b"\x90", MIB - 10), 19)
    variables = [carry(ContextVar(f"{namespace}-{number}", default=None)) for number in range(20)]
    context = {variable.name: value for variable in variables}
    call = Call(1, "an-id", "a.task", await codec.encode([[], {}]), codec.name, context=context)

    async def function() -> None: ...

    try:
        with pytest.raises(DecodeError, match="bytes of memory"):
            await copy_context().run(asyncio.create_task, decode_arguments(call, codec, function))
        call.context = {variables[0].name: value}
        assert await copy_context().run(asyncio.create_task, decode_arguments(call, codec, function)) == ([], {})
    finally:
        for variable in variables:
            del carried[variable.name]
