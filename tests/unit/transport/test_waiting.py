"""Calls wait for places, around a hub and in one process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

import atasks
from atasks import CallConnectionLost, CallTimeout, LoopbackTransport, atask
from atasks.testing import soon, until
from atasks.transport.unserved import Unserved

URL = ["loopback:", "unix:"]


@pytest.fixture(params=URL)
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A URL where a worker serves one call at a time."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        yield request.param if request.param == "loopback:" else f"unix://{directory}/hub.sock"


def _tasks(namespace: str) -> tuple[Any, asyncio.Event]:
    gate = asyncio.Event()

    @atask(namespace=namespace, name="wait")
    async def wait() -> None:
        await gate.wait()

    return wait, gate


async def _timeout(call: Coroutine[Any, Any, Any]) -> CallTimeout:
    with pytest.raises(CallTimeout) as raised:
        await call
    return raised.value


async def test_a_timeout_says_what_the_call_waited_for(url: str, namespace: str) -> None:
    wait, _ = _tasks(namespace)
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(atasks.serve(url, namespace=namespace, concurrency=1, grace=0))
        if url.startswith("unix:"):
            await stack.enter_async_context(atasks.connect(url, namespace=namespace, hub=False))
        loop = asyncio.get_running_loop()
        sent = loop.time()
        running = asyncio.create_task(_timeout(wait.options(timeout=1.5)()))
        await until(lambda: serving.held)
        begun = loop.time()
        error = await _timeout(wait.options(timeout=0.3)())
        assert (error.waited_for, error.ran) == ("turn", None)
        assert str(error).startswith("wait did not finish within 0.3 s: it waited for ")
        error = await running
        assert (error.waited_for, error.worker) == ("run", serving.id)
        assert error.ran is not None
        assert sent + 1.5 - begun - 0.05 < error.ran < loop.time() - sent, "less what it took to begin"
        assert (
            str(error) == f"wait did not finish within 1.5 s: it ran at worker {serving.id} for {error.ran:.1f} s"
        )
        if url.startswith("unix:"):
            error = await _timeout(wait.options(timeout=0.2, queue="nobody")())
            assert error.waited_for == "worker"
            assert str(error).endswith("it waited for a worker, and nothing serves queue 'nobody'")


async def test_a_loopback_transport_without_a_worker(namespace: str) -> None:
    wait, _ = _tasks(namespace)
    transport = LoopbackTransport(namespace)
    await transport.connect()
    error = await _timeout(wait.options(timeout=0.1)())
    assert error.waited_for == "worker"
    await transport.disconnect()


@pytest.mark.parametrize("kind", ["loopback", "hub"])
async def test_calls_that_nothing_serves_are_said(
    kind: str, namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atasks.transport.loopback.WARN_SECONDS", 0.2)
    monkeypatch.setattr("atasks.transport.backends.local.lookout.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("atasks.transport.unserved.WARN_SECONDS", 0.2)
    monkeypatch.setattr("atasks.transport.unserved.AGAIN_SECONDS", 0.5)
    wait, _ = _tasks(namespace)
    async with AsyncExitStack() as stack:
        if kind == "loopback":
            transport = LoopbackTransport(namespace)
            await transport.connect()
            stack.push_async_callback(transport.disconnect)
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="at-"))
            url = f"unix://{directory}/hub.sock"
            await stack.enter_async_context(atasks.connect(url, namespace=namespace, hub=True, workers=0))
        calls = [asyncio.create_task(wait()) for _ in range(3)]
        await until(lambda: len(caplog.records) >= 2)
        for record in caplog.records[:2]:
            assert record.levelno == logging.WARNING
            assert record.getMessage().startswith(
                "nothing serves queue 'default': 3 calls have waited for a worker"
            )
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


def test_each_queue_is_said_once_and_again_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    unserved = Unserved(logging.getLogger("atasks.tests"))
    pending = _pending()
    said: list[tuple[int, int]] = []
    for second in range(0, 200, 2):
        for queue in ("one", "two"):
            unserved.see(queue, [pending] * 4, 1000.0 + second)
        said += [(second, len(caplog.records))]
    changes = [now[0] for before, now in itertools.pairwise(said) if now[1] > before[1]]
    assert changes == [6, 66, 126, 186]
    assert len(caplog.records) == 8


@pytest.mark.parametrize("since", [0.0, -math.inf])
def test_a_call_that_was_not_sent_yet_waits_from_when_that_is_seen(
    since: float, caplog: pytest.LogCaptureFixture
) -> None:
    unserved = Unserved(logging.getLogger("atasks.tests"))
    for second in range(0, 8, 2):
        unserved.see("one", [_pending(since)], 1000.0 + second)
    (message,) = caplog.messages
    assert "1 call has waited for a worker, now for 6 s;" in message


def test_calls_have_waited_no_longer_than_they_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Others waited in the queue half a minute ago, and have ended since."""
    unserved = Unserved(logging.getLogger("atasks.tests"))
    for second in (0, 2, 4):
        unserved.see("one", [_pending()], 1000.0 + second)
    for second in (34, 36, 38, 40):
        unserved.see("one", [_pending(1034.0)], 1000.0 + second)
    (message,) = caplog.messages
    assert "1 call has waited for a worker, now for 6 s;" in message


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (1, "1 call waits until it is resumed (atasks resume QUEUE), now for 6 s"),
        (2, "2 calls wait until it is resumed (atasks resume QUEUE), some for 6 s"),
    ],
)
def test_calls_of_a_queue_that_is_paused_are_counted_in_words(
    calls: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    unserved = Unserved(logging.getLogger("atasks.tests"))
    for second in (0, 2, 4, 6):
        unserved.see("one", [_pending()] * calls, 1000.0 + second, paused=True)
    assert caplog.messages == [f"queue 'one' is paused: {said}"]


def _pending(sent: float = 1000.0) -> Any:
    class Waits:
        since = sent

    return Waits()


async def test_a_call_that_ran_when_the_block_was_left_says_so(namespace: str) -> None:
    """The worker of the block gives its calls back first, and then nothing serves them."""
    running = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    async with atasks.connect("loopback:", namespace=namespace):
        call = asyncio.create_task(forever())
        await soon(running.wait())
    with pytest.raises(CallConnectionLost, match="when last seen, it ran") as found:
        await soon(call)
    assert found.value.waited_for == "run"
