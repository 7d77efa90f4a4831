"""Windows of a worker whose calls wait for tokens of limits, beside a broker and a worker that only count."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from atasks.transport.backends.amqp.worker.consumer import Consumer, Wait
from atasks.transport.backends.amqp.worker.prefetch import AHEAD, Prefetch
from atasks.worker.limited import FRESH_SECONDS, TokenWaits

CALLS = 100


class Queue:
    """A work queue with many calls, of which each comes to wait for a token. The worker has one that waits."""

    def __init__(self, concurrency: int) -> None:
        self.left = CALLS
        self.windows: list[int] = []
        self.tokens = SimpleNamespace(fresh=0, lasting=1)
        self.worker: Any = SimpleNamespace(
            token_waits=self.tokens, concurrency=concurrency, room=concurrency, parked=1, held=1, alone=False
        )
        link: Any = SimpleNamespace(
            consume_work=self.consume, work=SimpleNamespace(basic_cancel=self.cancel), lost=asyncio.Future()
        )
        acks: Any = None
        self.consumer = Consumer(
            link,
            acks,
            "work",
            "work",
            concurrency,
            receive=lambda consumer: self.come,
            unavailable=lambda queue, error: None,
            patience=5.0,
        )
        self.prefetch = Prefetch(link, self.worker, [self.consumer])

    async def consume(self, name: str, callback: Any, window: int) -> str:
        """Consume: the calls come with the broker's answer."""
        self.windows.append(window)
        coming = min(window, self.left)
        self.left -= coming
        self.worker.held += coming
        self.consumer.unfinished += coming
        callback(coming)
        return "tag"

    async def cancel(self, tag: str) -> None:
        """Answer in a later turn of the event loop."""
        await asyncio.sleep(0)

    def come(self, coming: int) -> None:
        """Each call that has come begins."""

    def wait(self) -> None:
        """One more call waits for a token."""
        self.tokens.lasting += 1
        self.worker.parked += 1
        self.prefetch.adapt_soon()

    async def run(self) -> list[int]:
        """Return the windows with which all calls came to wait."""
        await self.prefetch.open()
        async with asyncio.timeout(60):
            while self.tokens.lasting <= CALLS:
                await asyncio.sleep(0)
        return self.windows


class Asking(Queue):
    """Each call waits for the word of its caller first, who answers one call in a turn of the event loop."""

    def come(self, coming: int) -> None:
        waits = [Wait(self.consumer) for _ in range(coming)]
        asyncio.get_running_loop().call_soon(self.answer, waits, 5)

    def answer(self, waits: list[Wait], turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.answer, waits, turns - 1)
        elif waits:
            waits.pop().end()
            self.wait()
            asyncio.get_running_loop().call_soon(self.answer, waits, 0)


class Starting(Queue):
    """Each call has a slot until its first step. Other calls have all slots but one when the first one comes."""

    def __init__(self, concurrency: int) -> None:
        super().__init__(concurrency)
        self.worker.room = 1

    def come(self, coming: int) -> None:
        self.worker.room = self.worker.concurrency - coming
        asyncio.get_running_loop().call_soon(self.step, coming)

    def step(self, coming: int) -> None:
        self.worker.room += coming
        for _ in range(coming):
            self.wait()


class Fresh(Queue):
    """Each call may have its token in a moment. Then it turns out to wait, one call in a turn of the loop."""

    def come(self, coming: int) -> None:
        self.tokens.fresh += coming
        asyncio.get_running_loop().call_soon(self.last, coming)

    def last(self, coming: int) -> None:
        if coming:
            self.tokens.fresh -= 1
            self.wait()
            asyncio.get_running_loop().call_soon(self.last, coming - 1)


@pytest.mark.parametrize("queue", [Asking, Starting, Fresh])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_window_grows_once_its_calls_have_shown_that_they_wait(
    queue: type[Queue], concurrency: int
) -> None:
    windows = await queue(concurrency).run()
    wanted = windows[:1]
    while sum(wanted) < CALLS:
        wanted.append(min(2 * wanted[-1], AHEAD))
    assert windows[: len(wanted)] == wanted


@pytest.mark.parametrize("held", [0, 1])
async def test_a_window_is_looked_at_at_once_when_the_last_call_has_ended(held: int) -> None:
    """Another turn of the event loop would make the next call wait, if that is alone too."""
    queue = Queue(3)
    queue.left = 0
    await queue.prefetch.open()
    queue.worker.held, queue.consumer.prefetch, queue.consumer.adopted = held, 0, 1  # a wider window is due
    queue.prefetch.adapt_soon()
    changes = [task for task in asyncio.all_tasks() if task.get_name() == "atasks window"]
    assert len(changes) == 1 - held
    await asyncio.gather(*changes)


async def test_a_window_is_looked_at_when_no_token_may_come_in_a_moment() -> None:
    looks: list[int] = []
    loop = asyncio.get_running_loop()
    waits = TokenWaits(loop, lambda: looks.append(waits.fresh))
    with waits.one("taken", None):
        await asyncio.sleep(2 * FRESH_SECONDS)
        assert looks == [0]
        with waits.one("free", None):
            with waits.one("free", None):
                pass
            assert looks == [0]
        assert looks == [0, 0]
