"""Streams over a transport that loses, repeats and delays what it is given."""

# Private attributes: The transports of this file override and call `_take_in` and `_resolve`, as a transport's
# author does.

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

import atasks
from atasks import LoopbackTransport, StreamLost, atask
from atasks.router import get_router
from atasks.transport import stream_receiver
from atasks.wire import VERSION, Credit, End, Item, Reply, Status
from atasks.worker import streams
from atasks.worker.worker import Worker
from tests.using import using


class Lossy(LoopbackTransport):
    """Loses, repeats or delays items and credits, with this probability. An `End` arrives as replies do: a broker
    keeps it until it is taken."""

    redelivers = True

    def __init__(self, namespace: str, seed: int = 0, probability: float = 0.0) -> None:
        super().__init__(namespace)
        self.random = random.Random(seed)
        self.probability = probability
        self.faults = 0

    def _take_in(self, envelope: Item | End) -> None:
        if isinstance(envelope, End):
            super()._take_in(envelope)
        else:
            self._mistreat(lambda: super(Lossy, self)._take_in(envelope))

    def _grant(self, credit: Credit, worker: str) -> None:
        self._mistreat(lambda: super(Lossy, self)._grant(credit, worker))

    def _mistreat(self, hand_on: Callable[[], None]) -> None:
        if self.random.random() >= self.probability:
            hand_on()
            return
        self.faults += 1
        match self.random.choice(["lose", "repeat", "delay"]):
            case "repeat":
                hand_on()
                hand_on()
            case "delay":
                asyncio.get_running_loop().call_later(self.random.random() / 100, hand_on)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and consumers that have heard nothing ask after a moment, not after seconds."""
    monkeypatch.setattr(streams, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(stream_receiver, "ASK_SECONDS", 0.02)


@pytest.mark.parametrize("seed", range(8))
async def test_every_item_comes_once_and_in_order(namespace: str, seed: int) -> None:
    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number
            if number % 5 == 0:
                await asyncio.sleep(0)

    transport = Lossy(namespace, seed, probability=0.3)
    worker = Worker(get_router(namespace), transport)
    async with using(transport), asyncio.timeout(60):
        await worker.start()
        for window in (1, 7, 64):
            assert [number async for number in numbers.options(window=window)(80)] == list(range(80))
        await worker.drain(0)
    assert transport.faults > 20


class Worst(Lossy):
    """Loses the items, all of them."""

    def _take_in(self, envelope: Item | End) -> None:
        if not isinstance(envelope, Item) or not envelope.payloads:
            super()._take_in(envelope)


async def test_an_end_whose_items_never_come_is_not_the_end(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        yield 1

    transport = Worst(namespace)
    worker = Worker(get_router(namespace), transport)
    async with using(transport), asyncio.timeout(60):
        await worker.start()
        with pytest.raises(StreamLost, match="after 0 items: its last items were lost"):
            await anext(numbers())
        await worker.drain(0)


class Scripted(LoopbackTransport):
    """Has no worker: the test says what arrives."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.credits: list[tuple[Credit, str]] = []

    def _grant(self, credit: Credit, worker: str) -> None:
        self.credits.append((credit, worker))

    @property
    def call_id(self) -> str:
        (call_id,) = self._pending
        return call_id

    async def items(self, first: int, *values: int, worker: str = "w", attempt: int = 1, codec: str = "") -> None:
        router = get_router(self.namespace)
        payloads = [await router.codec.encode(value) for value in values]
        name = codec or router.codec.name
        self._take_in(Item(VERSION, self.call_id, first, payloads, name, worker, attempt))

    def end(self, count: int, worker: str = "w", attempt: int = 1) -> None:
        reply = Reply(VERSION, self.call_id, Status.VALUE, b"", "", worker)
        self._take_in(End(VERSION, self.call_id, count, reply, attempt))


@pytest.fixture
async def scripted(namespace: str) -> AsyncIterator[Scripted]:
    transport = Scripted(namespace)
    async with using(transport):
        yield transport


async def _begin(stream: atasks.RemoteStream[int]) -> asyncio.Task[list[int]]:
    async def read() -> list[int]:
        return [number async for number in stream]

    task = asyncio.create_task(read())
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def _numbers(namespace: str, *, replayable: bool = False) -> atasks.RemoteStream[int]:
    @atask(namespace=namespace, replayable=replayable)
    async def numbers() -> AsyncIterator[int]:
        yield 1

    return numbers()


async def test_items_before_their_turn_wait_for_it(namespace: str, scripted: Scripted) -> None:
    reading = await _begin(_numbers(namespace))
    await scripted.items(4, 4, 5)
    await scripted.items(2, 2, 3)
    assert [(credit.again, worker) for credit, worker in scripted.credits] == [(0, "w")], "it asks once"
    scripted.end(6)
    await scripted.items(0, 0, 1, 2)
    assert await reading == [0, 1, 2, 3, 4, 5]


async def test_a_question_is_answered(namespace: str, scripted: Scripted) -> None:
    reading = await _begin(_numbers(namespace))
    await scripted.items(0, 10, 11)
    await scripted.items(2)
    await scripted.items(3)
    found = [(credit.items, credit.again) for credit, _ in scripted.credits]
    assert found == [(0, None), (0, 2)]
    await scripted.items(2, 12)
    scripted.end(3)
    assert await reading == [10, 11, 12]


async def test_an_earlier_attempt_is_void(namespace: str, scripted: Scripted) -> None:
    reading = await _begin(_numbers(namespace, replayable=True))
    await scripted.items(0, 0, 1, worker="old")
    await scripted.items(0, worker="new", attempt=2)
    assert scripted.credits[-1][0].again == 2
    assert scripted.credits[-1][1] == "new"
    await scripted.items(2, -1, worker="old")
    await scripted.items(2, -1, worker="older", attempt=1)
    scripted.end(2, worker="old")
    await scripted.items(2, 2, worker="new", attempt=2)
    scripted.end(3, worker="new", attempt=2)
    assert await reading == [0, 1, 2]


async def test_another_worker_ends_a_stream_that_may_not_begin_anew(namespace: str, scripted: Scripted) -> None:
    stream = _numbers(namespace)
    first = asyncio.ensure_future(anext(stream))
    for _ in range(3):
        await asyncio.sleep(0)
    await scripted.items(0, 0, worker="old")
    assert await first == 0
    await scripted.items(0, worker="new", attempt=2)
    with pytest.raises(StreamLost, match="after 1 items: the worker that ran it is gone") as caught:
        await anext(stream)
    assert caught.value.items == 1


async def test_items_of_another_codec_are_refused(namespace: str, scripted: Scripted) -> None:
    reading = await _begin(_numbers(namespace))
    await scripted.items(0, 0, codec="other")
    with pytest.raises(atasks.DecodeError, match="encoded by 'other'"):
        await reading


async def test_a_reply_with_a_value_is_not_the_end_of_a_stream(namespace: str, scripted: Scripted) -> None:
    reading = await _begin(_numbers(namespace))
    scripted._resolve(Reply(VERSION, scripted.call_id, Status.VALUE, b"", "", "w"))
    with pytest.raises(atasks.CallError, match="knows no streams"):
        await reading


@pytest.mark.parametrize("first", [0, 1], ids=["in turn", "before its turn"])
async def test_a_worker_that_sends_more_than_the_window_is_parted_with(
    namespace: str, scripted: Scripted, first: int
) -> None:
    reading = await _begin(_numbers(namespace))
    payloads = [await get_router(namespace).codec.encode(number) for number in range(66)]
    for numbers in (range(first, 64), range(64, 66)):
        sent = [payloads[number] for number in numbers]
        codec = get_router(namespace).codec.name
        scripted._take_in(Item(VERSION, scripted.call_id, numbers[0], sent, codec, "w", 1))
    with pytest.raises(StreamLost, match="more than the window of 64 items"):
        await reading


async def test_a_worker_that_sends_more_bytes_than_the_window_has_is_parted_with(
    namespace: str, scripted: Scripted
) -> None:
    reading = await _begin(_numbers(namespace))
    codec = get_router(namespace).codec
    large = await codec.encode("x" * 700_000)
    scripted._take_in(Item(VERSION, scripted.call_id, 0, [large] * 2, codec.name, "w", 1))
    assert scripted.call_id, "the last item may exceed the megabyte"
    scripted._take_in(Item(VERSION, scripted.call_id, 2, [large[:10]], codec.name, "w", 1))
    with pytest.raises(StreamLost, match="bytes ahead"):
        await reading


async def test_the_window_grows_for_a_consumer_that_waits_for_full_windows(
    namespace: str, scripted: Scripted
) -> None:
    reading, came = await _begin(_numbers(namespace)), 0
    for window in (64, 128, 256, 512, 1024, 1024):
        await scripted.items(came, *range(came, came + window))
        came += window
        for _ in range(3):
            await asyncio.sleep(0)
        credit, _ = scripted.credits[-1]
        assert (credit.items, credit.window) == (came, min(2 * window, 1024))
    scripted.end(came)
    assert await reading == list(range(came))


async def test_the_window_stays_where_items_come_slowly_and_where_it_was_given(
    namespace: str, scripted: Scripted
) -> None:
    reading = await _begin(_numbers(namespace))
    for number in range(200):
        await scripted.items(number, number)
        await asyncio.sleep(0)
    scripted.end(200)
    assert await reading == list(range(200))

    @atask(namespace=namespace, window=64)
    async def others() -> AsyncIterator[int]:
        yield 1

    reading = await _begin(others())
    for first in range(0, 640, 64):
        await scripted.items(first, *range(first, first + 64))
        for _ in range(3):
            await asyncio.sleep(0)
    scripted.end(640)
    assert await reading == list(range(640))
    assert {credit.window for credit, _ in scripted.credits} == {0}


async def test_a_worker_that_knows_of_no_growth_is_told_in_time(namespace: str, scripted: Scripted) -> None:
    """An older version is such a worker: it sends 64 items past what it was told, whatever the window is."""
    reading, came = await _begin(_numbers(namespace)), 0
    while came < 5000:
        told = max([credit.items for credit, _ in scripted.credits], default=0)
        assert told + 64 > came, "it waits for the consumer, and the consumer for it"
        await scripted.items(came, *range(came, told + 64))
        came = told + 64
        for _ in range(3):
            await asyncio.sleep(0)
    scripted.end(came)
    assert await reading == list(range(came))
