"""A call that blocks the event loop is named in the log; the thread that watches ends with its worker."""

# Private attributes: `Worker._watchdog` and its `_thread`: that a thread sleeps or has ended is seen nowhere
# else.

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

import atasks
from atasks.tasks import atask
from atasks.testing import until
from atasks.tracking.counters import BUSY, Counters
from atasks.worker.watchdog import Watchdog


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "atasks-watchdog"]


async def test_a_call_that_blocks_the_loop_is_named(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    @atask(namespace=namespace, name="innocent")
    async def innocent() -> None:
        await asyncio.sleep(0)

    @atask(namespace=namespace, name="greedy")
    async def greedy() -> None:
        time.sleep(0.3)  # noqa: ASYNC251

    async with atasks.connect(namespace=namespace):
        await innocent()
        await asyncio.gather(innocent(), greedy())
    said = [record for record in caplog.records if record.name == "atasks.worker"]
    (record,) = [record for record in said if "greedy" in record.getMessage()]  # a busy machine blocks others too
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith("atask greedy blocked the event loop for ")
    assert '@atask(executor="thread")' in message
    assert f"at {__file__}:" in message
    assert "in greedy" in message


async def test_plain_functions_are_named_too(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    @atask(namespace=namespace, name="plain")
    def plain() -> int:
        time.sleep(0.3)
        return 1

    async with atasks.connect(namespace=namespace):
        assert await plain() == 1
    assert "plain blocked the event loop for" in caplog.text


async def test_one_thread_per_worker_which_ends_with_it(namespace: str) -> None:
    before = len(watchers())
    async with atasks.connect(namespace=namespace):
        assert len(watchers()) == before + 1
        async with atasks.serve("loopback:", namespace=namespace):
            assert len(watchers()) == before + 2
        assert len(watchers()) == before + 1
    assert len(watchers()) == before


async def test_none_is_left_behind_by_a_worker_that_cannot_start(namespace: str) -> None:
    class Refusing(atasks.LoopbackTransport):
        async def serve(self, worker: atasks.Worker, queues: object = None) -> None:
            raise atasks.QueueMismatch("no")

    before = len(watchers())
    transport = Refusing(namespace)
    await transport.connect()
    with pytest.raises(atasks.QueueMismatch):
        await atasks.get_router(namespace).activate(transport)
    await transport.disconnect()
    assert len(watchers()) == before


async def until_asleep(worker: atasks.Worker) -> None:
    await until(lambda: worker._watchdog.asleep)


async def test_it_sleeps_while_nothing_runs_and_wakes_for_the_next_call(
    namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atasks.worker.watchdog.IDLE_PROBES", 1)
    monkeypatch.setattr("atasks.worker.watchdog.PERIOD", 0.001)

    @atask(namespace=namespace, name="greedy")
    async def greedy() -> None:
        time.sleep(0.3)  # noqa: ASYNC251

    async with atasks.serve("loopback:", namespace=namespace) as worker:
        await until_asleep(worker)
        await greedy()
        await until_asleep(worker)
    assert caplog.text.count("greedy blocked the event loop") == 1


def test_a_loop_that_is_closed_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atasks.worker.watchdog.STILL_BLOCKED", 0.01)
    loop = asyncio.new_event_loop()
    cells = Counters("worker", "namespace").own
    watchdog = Watchdog(loop, cells)
    cells[BUSY] = 1
    loop.close()
    watchdog.wake()
    watchdog._thread.join(60)
    assert not watchdog._thread.is_alive()
    watchdog.stop()


@pytest.mark.parametrize("event", ["_wake", "_answered"])
async def test_stopping_just_before_the_thread_waits(monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    """The thread has looked if it must stop, and now clears the event that `stop` has set: it must not wait for
    it."""
    monkeypatch.setattr("atasks.worker.watchdog.IDLE_PROBES", 0 if event == "_wake" else 10**9)
    prepared, arrived, go_on = threading.Event(), threading.Event(), threading.Event()

    class Late(Watchdog):
        def _watch(self) -> None:
            prepared.wait(60)
            super()._watch()

    class Slow(threading.Event):
        def clear(self) -> None:
            arrived.set()
            go_on.wait(60)
            super().clear()

    watchdog = Late(asyncio.get_running_loop(), Counters("worker", "namespace").own)
    setattr(watchdog, event, Slow())
    join = watchdog._thread.join

    def join_then(timeout: float | None = None) -> None:
        """All that `stop` sets has been set."""
        go_on.set()
        join(5)

    monkeypatch.setattr(watchdog._thread, "join", join_then)
    prepared.set()
    await asyncio.to_thread(arrived.wait, 10)
    await asyncio.to_thread(watchdog.stop)
    assert not watchdog._thread.is_alive()
