"""Large pieces of payloads travel in shared memory: whole, bounded, and gone with whoever had them."""

# Private attributes: none.

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import pickle
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import atasks
from atasks import WorkerLost, atask
from atasks.codecs import pieces
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.codecs.pieces import HUGE, MAX_PIECES, SEALS, SHARED_BYTES, SHARES, Pieces, Shared
from atasks.testing import until
from atasks.transport.backends.local import lane as lanes
from atasks.transport.backends.local.beside import SHARED
from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.lane import Lane
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import (
    PROTOCOL,
    Deliver,
    Hello,
    Message,
    Request,
    Serve,
    Slots,
    Welcome,
)
from atasks.wire import VERSION, Call, Reply, Status
from tests.faults.history import settled
from tests.local.around_hub import of, process
from tests.local.test_conversation import frame
from tests.waiting import DEADLINE

pytestmark = pytest.mark.skipif(not SHARES, reason="needs memory without a name, which Linux has")

SIZE = 2 * SHARED_BYTES + 5


class Array:
    """Stands for NumPy's arrays, as far as pickles know them."""

    def __init__(self, memory: Any) -> None:
        self.memory = memoryview(memory)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.memory),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and self.memory == other.memory

    __hash__ = None  # type: ignore[assignment]


def array(size: int = SIZE) -> Array:
    return Array(bytearray(os.urandom(size)))


@atask
async def there_and_back(value: Any) -> Any:
    return value


@atask(max_attempts=1)
async def sent_to_its_death(value: Any) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return len(value)


@atask
async def write_to(value: Array) -> bytes:
    value.memory[:3] = b"abc"
    return bytes(value.memory[:5])


def descriptors() -> list[str]:
    """The shared memory that this process has open, but for that of its supervisors."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the directory is closed by now
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [each for each in found if "memfd:atasks payload" in each or "memfd:hostile" in each]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No memory of that kind outlives a test, and none of it ever has a name."""
    named = os.listdir("/dev/shm")
    yield
    assert descriptors() == []
    assert Shared.count == 0
    assert not {name for name in os.listdir("/dev/shm") if "atasks" in name} - set(named)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the payloads that this process has sent in shared memory."""
    found: list[int] = []
    send = Lane.send

    def note(lane: Lane, payload: Pieces) -> bool:
        went = send(lane, payload)
        if went:
            found.append(len(payload))
        return went

    monkeypatch.setattr(Lane, "send", note)
    return found


VALUES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: os.urandom(SIZE),
    "an array": array,
    "an array that nobody writes to": lambda: Array(os.urandom(SIZE)),
    "within": lambda: {
        "a": [array(), (os.urandom(SIZE), 1)],
        "b": bytearray(SIZE),
        "c": "ä" * SIZE,
        "d": array(9),
    },
    "the same twice": lambda: [(value := array()), value],
    "very many": lambda: [array(SHARED_BYTES) for _ in range(MAX_PIECES + 1)],
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
async def test_values_travel_between_processes(make: Callable[[], Any], sent: list[int]) -> None:
    value = make()
    async with atasks.local(workers=1, modules=[__name__]):
        found = await asyncio.wait_for(there_and_back(value), DEADLINE)
        assert found == value
        assert type(found) is type(value)
        assert len(sent) == (len(value) <= MAX_PIECES if isinstance(value, list) else 1)
        if isinstance(value, list) and len(value) == 2:
            assert found[0] is found[1]
    del found


async def test_more_than_64_mib_travel() -> None:
    value = bytes(65 * 2**20)
    async with atasks.local(workers=1, modules=[__name__]):
        assert await asyncio.wait_for(there_and_back(value), DEADLINE) == value


@pytest.mark.parametrize("remote", ["worker", "caller"])
async def test_arrays_are_copies(remote: str, tmp_path: Path) -> None:
    """A write to one changes no other one."""
    value = array()
    before = bytes(value.memory)
    url = f"unix://{tmp_path}/hub"
    async with atasks.serve(url) if remote == "caller" else atasks.local(workers=1, modules=[__name__]):
        calls = [asyncio.ensure_future(write_to(value)) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        value.memory[:3] = b"xyz"  # the arguments are on their way
        for each in await asyncio.wait_for(asyncio.gather(*calls), DEADLINE):
            assert each == b"abc" + before[3:5]
        assert value.memory[:3] == b"xyz"
        found = await there_and_back(value)
        found.memory[:1] = b"F"
        assert value.memory[:3] == b"xyz"


def shared_call(*contents: bytes) -> Call:
    pickled = b"small"
    payload: Any = Pieces([each for content in contents for each in (pickled, Shared.copy(content))])
    return Call(VERSION, "an-id", "a.task", payload, "pickle")


@asynccontextmanager
async def sharing(path: str) -> AsyncIterator[tuple[SocketLink, list[object]]]:
    """A process around the hub, with a lane."""
    received: list[object] = []
    _, here = await asyncio.get_running_loop().create_unix_connection(SocketLink, path)
    here.receive = received.extend
    here.greet(Hello(PROTOCOL, "default", os.getpid(), True))
    await until(lambda: received, "it is welcome")
    assert received == [Welcome(os.getpid(), True, True)]
    here.beside = here.shares = True
    try:
        yield here, received
    finally:
        here.abort()
        await settled(here.ended, "the end of the conversation")


async def test_a_hub_hands_on_the_memory_itself(host: Host, path: str, sent: list[int]) -> None:
    async with sharing(path) as (caller, _), sharing(path) as (worker, received):
        worker.send(Serve("w", ["q"]))
        worker.send(Slots(1, 0))
        content = os.urandom(SIZE)
        call = shared_call(content)
        caller.send(Request("q", call), len(call.payload))
        await until(lambda: of(received, Deliver), "it has come")
        (delivered,) = of(received, Deliver)
        assert isinstance(delivered, Deliver)
        assert bytes(delivered.call.payload) == b"small" + content
        assert type(delivered.call.payload) is not bytes
        assert len(sent) == 2
        received.clear()
        del call, delivered


async def test_who_takes_no_memory_gets_bytes(host: Host, path: str) -> None:
    async with sharing(path) as (caller, _), process(path) as (worker, received):
        worker.send(Serve("w", ["q"]))
        worker.send(Slots(2, 0))
        content = os.urandom(SIZE)
        call = shared_call(content)
        for beside in (False, True):
            host.hub.peers[1].link.beside = beside
            caller.send(Request("q", structs.replace(call, id=str(beside))), len(call.payload))
            await until(lambda beside=beside: len(of(received, Deliver)) == 1 + beside, "it has come")  # type: ignore[misc]
        for message in of(received, Deliver):
            assert isinstance(message, Deliver)
            assert message.call.payload == b"small" + content
        del call


@pytest.mark.parametrize("how", ["full", "no memory", "too many"])
async def test_what_does_not_go_in_shared_memory_goes_over_the_socket(
    how: str, monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    if how == "no memory":

        def fail(_: object) -> Shared:
            raise OSError

        monkeypatch.setattr(Shared, "copy", fail)
    elif how == "too many":
        monkeypatch.setattr(pieces, "MAX_SHARED", 0)
        monkeypatch.setattr(lanes, "MAX_SHARED", 0)
    values = [os.urandom(SIZE) for _ in range(40)]
    async with atasks.local(workers=1, modules=[__name__]):
        found = await asyncio.wait_for(asyncio.gather(*map(there_and_back, values)), DEADLINE)
    assert found == values
    assert len(sent) == (0 if how != "full" else min(max(len(sent), 1), 39))


def memory(content: bytes, seals: int) -> int:
    descriptor = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def hollow(size: int = SIZE, flags: int = 0) -> int:
    """Memory of which nothing is there."""
    try:
        descriptor = os.memfd_create("hostile", os.MFD_ALLOW_SEALING | flags)
    except OSError:  # this system has no large pages
        descriptor = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


def unreadable(mode: int = os.O_WRONLY) -> int:
    """Memory by a descriptor that is for writing alone, or for nothing."""
    descriptor = memory(bytes(100), SEALS)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def sparse() -> int:
    """A TiB, of which the last page is there."""
    descriptor = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.pwrite(descriptor, b"x", 2**40 - 1)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


def pipe() -> int:
    here, there = os.pipe()
    os.close(there)
    return here


HOSTILE: dict[str, tuple[list[Callable[[], int]], list[bytes | int]]] = {
    "another size": ([lambda: memory(bytes(100), SEALS)], [99]),
    "fewer": ([lambda: memory(bytes(100), SEALS)], [100, 100]),
    "none": ([], [100]),
    "a byte without one": ([], []),
    "more": ([lambda: memory(bytes(100), SEALS)] * 2, [100]),
    "very many": ([lambda: memory(bytes(100), SEALS)] * (MAX_PIECES + 1), [100] * (MAX_PIECES + 1)),
    "may shrink": ([lambda: memory(bytes(100), SEALS & ~fcntl.F_SEAL_SHRINK)], [100]),
    "may change": ([lambda: memory(bytes(100), SEALS & ~fcntl.F_SEAL_WRITE)], [100]),
    "may grow": ([lambda: memory(bytes(100), SEALS & ~fcntl.F_SEAL_GROW)], [100]),
    "not there": ([hollow], [SIZE]),
    "a large page that is not there": ([partial(hollow, HUGE, os.MFD_HUGETLB)], [HUGE]),  # it has no hole
    "a TiB": ([sparse], [2**40]),
    "not for reading": ([unreadable], [100]),
    "for nothing": ([partial(unreadable, os.O_ACCMODE)], [100]),
    "a pipe": ([pipe], [100]),
    "a directory": ([lambda: os.open("/", os.O_RDONLY)], [100]),
    "a good one and a bad one": ([lambda: memory(bytes(100), SEALS), pipe], [100, 100]),
    "no description": ([lambda: memory(bytes(100), SEALS)], [-1]),
}


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE)
async def test_who_sends_what_makes_no_sense_is_disconnected(
    host: Host,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[list[Callable[[], int]], list[bytes | int]],
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "socketpair", lambda: (ours, theirs))
    makers, description = given
    before = len(os.listdir("/proc/self/fd"))
    async with sharing(path) as (here, _):
        assert here.transport is not None
        made = [make() for make in makers]
        if made or not description:
            socket.send_fds(ours, [b"\0"], made)
        for descriptor in made:
            os.close(descriptor)
        call = Call(VERSION, "an-id", "a.task", encode(description), "pickle")  # type: ignore[arg-type]
        here.transport.write(SHARED + frame(encode([Request("nowhere", call, wait=False)])))
        await settled(here.ended, "it is disconnected")
    async with process(path) as (polite, received):
        polite.send(Request("nowhere", Call(VERSION, "an-id", "a.task", b"", "pickle"), wait=False))
        await until(lambda: len(received) == 2, "the others go on")
    await until(lambda: len(os.listdir("/proc/self/fd")) < before, "nothing stays open")


BEHIND: dict[str, list[Message] | bytes] = {
    "none": [],
    "two": [Request("q", shared_call()), Request("q", shared_call())],
    "no payload": [Welcome(1)],
}


@pytest.mark.parametrize("messages", BEHIND.values(), ids=BEHIND)
async def test_memory_belongs_to_one_message(host: Host, path: str, messages: list[Message]) -> None:
    async with sharing(path) as (here, _):
        assert here.transport is not None
        assert here.lane is not None
        payload = Pieces([Shared.copy(bytes(100))])
        assert here.lane.send(payload)
        del payload
        here.transport.write(SHARED + frame(encode(messages)))
        await settled(here.ended, "it is disconnected")


async def test_without_a_lane_memory_makes_no_sense(host: Host, path: str) -> None:
    async with process(path) as (here, _):
        assert here.transport is not None
        here.transport.write(SHARED + frame(encode([])))
        await settled(here.ended, "it is disconnected")


@pytest.mark.parametrize("kind", ["a pipe", "memory", "several"])
async def test_a_lane_that_is_none_is_not_used(host: Host, path: str, kind: str) -> None:
    given = [pipe()] if kind == "a pipe" else [memory(b"x", 0) for _ in range(1 if kind == "memory" else 3)]
    before = len(os.listdir("/proc/self/fd"))
    received: list[object] = []
    _, here = await asyncio.get_running_loop().create_unix_connection(SocketLink, path)
    assert here.transport is not None
    here.receive = received.extend
    with socket.socket(fileno=os.dup(here.transport.get_extra_info("socket").fileno())) as own:
        socket.send_fds(own, [frame(encode([Hello(PROTOCOL, "default", 1, True)]))], given)
    for descriptor in given:
        os.close(descriptor)
    await until(lambda: received, "it is welcome")
    assert received == [Welcome(os.getpid(), True, False)]
    here.abort()
    await settled(here.ended, "the end")
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "nothing stays open")


async def test_a_message_that_cannot_be_read_takes_its_memory_along(host: Host, path: str) -> None:
    async with sharing(path) as (here, received):
        bad = structs.replace(shared_call(bytes(SIZE)), task="n" * 5000)
        good = shared_call(bytes(SIZE), bytes(SHARED_BYTES))
        for call in (bad, good):
            here.send(Request("nowhere", call, wait=False), len(call.payload))
        await until(lambda: len(received) == 3, "both are answered")
        (refusal,) = of(received, Reply)
        assert isinstance(refusal, Reply)
        assert refusal.status == Status.DECODE_ERROR
        del bad, good, call


async def test_a_worker_that_is_killed_leaves_nothing() -> None:
    async with atasks.local(workers=1, modules=[__name__]):
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(sent_to_its_death(array()), DEADLINE)
        gc.collect()  # the exception has the frame of the call in its traceback
        assert descriptors() == []
        assert await asyncio.wait_for(there_and_back(b"x" * SIZE), DEADLINE) == b"x" * SIZE


async def test_a_process_that_is_killed_between_leaves_nothing(host: Host, path: str) -> None:
    """There is memory that nobody has taken yet, and some that the hub has in hand."""
    async with sharing(path) as (here, _):
        assert here.lane is not None
        calls = [structs.replace(shared_call(bytes(SIZE)), id=str(number)) for number in range(3)]
        for call in calls:
            here.send(Request("q", call), len(call.payload))
        await until(lambda: Shared.count == 6, "the hub has it too")
        here.lane.send(calls[0].payload)  # type: ignore[arg-type]
        del calls, call
        here.abort()
        await until(lambda: Shared.count == 0, "it is gone")


async def test_a_codec_of_ones_own_gets_bytes() -> None:
    """A codec that overrides what knows of bytes alone is given no pieces."""
    seen: list[type] = []

    class Noting(CloudpickleCodec):
        async def decode(self, content: bytes) -> Any:
            seen.append(type(content))
            return await super().decode(content)

    class Mixed(CloudpickleCodec):
        name = "mixed"

    for codec, expected in ((Noting("noting"), bytes), (Mixed("mixed"), Pieces)):
        assert type(await codec.pieces(bytes(SIZE))) is expected
    assert seen == []


def test_what_pickle_refuses_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        asyncio.run(CloudpickleCodec("refusing").decode(3))  # type: ignore[arg-type]
