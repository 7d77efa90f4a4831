"""Small messages to a hub that would cost it much: memory, time, or tokens that nobody gave back."""

# Private attributes: `Hub._limits`, `Hub._queues`: nothing else counts what they keep.

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atasks.policies.limit import MAX_TOKENS
from atasks.testing import until
from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.hub import limits, queue
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import (
    Begun,
    Deliver,
    GiveToken,
    Ping,
    Pong,
    QueueState,
    Request,
    Serve,
    Slots,
    Steer,
    TakeToken,
    There,
    TokenTaken,
    Where,
)
from tests.local.around_hub import call, of, process
from tests.local.test_conversation import frame


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Hold this thread, in which the hub is, to so many seconds of CPU."""
    since = time.thread_time()
    yield
    assert time.thread_time() - since < seconds


async def together(here: SocketLink, received: list[object], messages: list[object]) -> None:
    """Send these in one frame, and wait until the hub has dealt with them."""
    assert here.transport is not None
    known = len(of(received, Pong))
    here.transport.write(frame(encode([*messages, Ping(1)])))
    await until(lambda: len(of(received, Pong)) > known, "the hub has read all", 60)


async def test_limits_with_many_tokens_take_no_memory_before_these_are_used(host: Host, path: str) -> None:
    """A place for each token of a rate made 390 MiB of 23 KB."""
    async with process(path) as (here, received):
        wishes: list[object] = [TakeToken(n, f"limit-{n}", None, 0, MAX_TOKENS, 86_400.0) for n in range(200)]
        tracemalloc.start()
        try:
            await together(here, received, wishes)
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(of(received, TokenTaken)) == 200
        assert size < 4 * 2**20


async def test_a_wish_for_a_token_spends_none(host: Host, path: str) -> None:
    """The place of a token that was never taken would be free after a period."""
    async with process(path) as (here, received), process(path) as (other, heard):
        await together(here, received, [TakeToken(1, "limit", None, 1, 2, 0.4)])
        for number in range(2, 50):
            await together(here, received, [TakeToken(number, "limit", None, 1, 2, 0.4), Begun(number)])
            await together(here, received, [GiveToken(number)])
        await together(here, received, [GiveToken(1)])
        since = time.monotonic()
        for number in range(7):  # 2 in each 0.4 s
            other.send(TakeToken(number, "limit", None, 1, 2, 0.4))
            await until(lambda n=number: len(of(heard, TokenTaken)) == n + 1, "it has one")  # type: ignore[misc]
            other.send(Begun(number))
            other.send(GiveToken(number))
        assert time.monotonic() - since > 0.9


async def test_users_of_idle_limits_are_bounded(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may use a limit for each of its users, one after the other."""
    monkeypatch.setattr(limits, "MOST_USED", 100)
    async with process(path) as (here, received), process(path) as (holder, heard):
        await together(holder, heard, [TakeToken(1, "held", None, 1, 0, 0.0)])
        for start in range(0, 5000, 500):
            uses: list[object] = []
            for number in range(start, start + 500):
                uses += [TakeToken(number, f"limit-{number}", None, 1, 0, 0.0), GiveToken(number)]
            await together(here, received, uses)
        assert len(of(received, TokenTaken)) == 5000
        assert host.hub._limits.size[1] < 2500
        await together(here, received, [TakeToken(9999, "held", None, 2, 0, 0.0)])
        assert "at_once=2 here, and at_once=1" in of(received, TokenTaken)[-1].refusal  # type: ignore[attr-defined]


async def test_what_workers_say_of_their_atasks_is_kept_once(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a namespace, and not for each queue: a worker of 3 000 queues and atasks took 300 MiB by 55 KB."""
    monkeypatch.setattr(queue, "MAX_TOLD", 5000)
    names = [f"n{number}" for number in range(3000)]
    async with process(path) as (here, received):
        with at_most(1.0):
            await together(here, received, [Serve("w", [*names, *names], dict.fromkeys(names, "thread"))])
        await together(here, received, [Serve("w", ["q"], {f"more-{n}": "thread" for n in range(3000)})])
        await together(here, received, [Request("q", call("the-id"))])
        (kept,) = host.hub._queues._queues.values()
        assert len(kept.executors) == 5000
    async with process(path, namespace="another") as (here, received):
        await together(here, received, [Serve("w", ["q"])])
        (kept,) = host.hub._queues._queues.values()
        assert not kept.executors


async def test_questions_about_calls_look_through_all_of_them_once(host: Host, path: str) -> None:
    """A frame has room for a million questions, and a hub may have many thousands of calls."""
    async with process(path) as (here, received):
        await together(here, received, [Request("q", call(f"call-{number}")) for number in range(5000)])
        with at_most(2.0):
            await together(here, received, [Where([f"call-{number % 5000}"]) for number in range(20_000)])
            await until(lambda: len(of(received, There)) == 5000, "all are answered")
        with at_most(2.0):
            await together(here, received, [Steer(number, "other", "purge") for number in range(20_000)])
        assert len(of(received, QueueState)) == 20_000


async def test_calls_that_few_workers_know_end_in_no_time(host: Host, path: str) -> None:
    """Each may have a lane of its own. All lanes were looked through when one was empty."""
    async with process(path) as (worker, delivered):
        with at_most(4.0):
            async with process(path) as (here, received):
                requests: list[object] = []
                for number in range(5000):
                    lacking = call(f"call-{number}")
                    lacking.seen = [f"worker-{number}-{each}" for each in range(50)]
                    requests.append(Request("q", lacking))
                await together(here, received, requests)
                assert len(host.hub) == 5000
            await until(lambda: len(host.hub) == 0, "its calls have ended with it", 60)
        await together(worker, delivered, [Serve("worker", ["q"]), Slots(5, 0), Request("q", call("another"))])
        await until(lambda: of(delivered, Deliver), "the queue serves others")
