"""Retries: what they take, how long they pause, and the libraries that do it above and below an atask."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import stamina
import tenacity

import atasks
from atasks import (
    CallCancelled,
    CallConnectionLost,
    CallTimeout,
    Diverged,
    RemoteError,
    Retry,
    RetryAfter,
    WorkerLost,
    atask,
    current_call,
)
from atasks.checks import MAX_TIMEOUT
from atasks.testing import soon
from atasks.transport.loopback import LoopbackTransport
from atasks.transport.pending import Pending
from atasks.wire import Status, ended


class Busy(Exception):
    pass


async def looked_up(_: object) -> bool:
    return False


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"on": ()}, ValueError, "at least one class"),
        ({"on": (OSError, "Busy")}, ValueError, "with its module"),
        ({"on": asyncio.CancelledError}, TypeError, "derived from Exception"),
        ({"on": (OSError, lambda error: True)}, TypeError, "a class of exceptions"),
        ({"on": 3}, TypeError, "a class of exceptions"),
        ({"on": None}, TypeError, "a class of exceptions"),
        ({"on": looked_up}, TypeError, "a plain function"),
        ({"attempts": 0}, ValueError, "attempts=0"),
        ({"attempts": 2.0}, TypeError, "attempts"),
        ({"wait": -1}, ValueError, "wait=-1"),
        ({"wait": "1"}, TypeError, "wait"),
        ({"jitter": float("nan")}, ValueError, "jitter"),
        ({"wait_max": float("inf")}, ValueError, "wait_max"),
        ({"wait": 90.0}, ValueError, "longer than wait_max"),
        ({"until": 0}, ValueError, "until"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Retry(**{"on": OSError, **arguments})


@pytest.mark.parametrize("value", [3, OSError, "yes", {"on": OSError}])
def test_an_option_that_is_no_retry_is_refused_where_it_is_defined(value: Any) -> None:
    with pytest.raises(TypeError, match="retry is a Retry"):

        @atask(name="retry-refused", retry=value)
        async def refused() -> None: ...


def test_pauses_grow_up_to_the_longest_one() -> None:
    retry = Retry(on=OSError, wait=1.0, wait_max=5.0, jitter=0.0)
    assert [retry.pause(OSError(), tries) for tries in (1, 2, 3, 4, 999)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    pauses = [Retry(on=OSError, wait=1.0, jitter=0.5).pause(OSError(), 1) for _ in range(100)]
    assert 1.0 <= min(pauses) < max(pauses) <= 1.5
    assert retry.pause(RetryAfter(90), 1) == 90.0


def test_what_is_worth_another_try() -> None:
    retry = Retry(on=(ConnectionError, "app.Busy"))
    assert retry.wants(ConnectionResetError())
    assert retry.wants(CallConnectionLost())
    assert retry.wants(RemoteError("app.Busy", "not known here"))
    assert retry.wants(RetryAfter(1))
    assert not retry.wants(RemoteError("app.Other"))
    assert not retry.wants(asyncio.CancelledError())
    assert not retry.wants(CallCancelled())
    assert Retry(on=f"{__name__}.Busy").wants(Busy())
    assert Retry(on="builtins.OSError").wants(ConnectionResetError())
    assert Retry(on=lambda error: isinstance(error, KeyError)).wants(KeyError())


def test_a_group_is_worth_what_each_of_its_exceptions_is() -> None:
    """A task group in an atask raises one for a single failure too."""
    retry = Retry(on=(ConnectionError, f"{__name__}.Busy"), wait=3.0, jitter=0.0)
    lost, busy, wrong = ConnectionResetError(), Busy(), ValueError()
    assert retry.wants(ExceptionGroup("one", [lost]))
    assert retry.wants(ExceptionGroup("two", [busy, ExceptionGroup("inner", [lost, RetryAfter(1)])]))
    assert not retry.wants(ExceptionGroup("mixed", [lost, ExceptionGroup("inner", [busy, wrong])]))
    assert not retry.wants(BaseExceptionGroup("ends the program", [lost, KeyboardInterrupt()]))
    assert Retry(on=ExceptionGroup).wants(ExceptionGroup("itself", [wrong]))
    seen: list[Exception] = []
    assert not Retry(on=seen.append).wants(group := ExceptionGroup("whole", [lost]))
    assert seen == [group]
    asks = ExceptionGroup("asks", [RetryAfter(20), ExceptionGroup("more", [RetryAfter(40), lost])])
    assert retry.pause(asks, 1) == 40.0
    assert retry.pause(ExceptionGroup("asks for nothing", [lost]), 1) == 3.0
    deep: Exception = lost
    for _ in range(10_000):
        deep = ExceptionGroup("deep", [deep])
    assert retry.wants(deep)
    assert retry.pause(deep, 1) == 3.0


def test_a_call_that_diverged_is_tried_again_only_if_that_is_said() -> None:
    diverged = Diverged("called what it had not called")
    group = ExceptionGroup("of two", [OSError(), diverged])
    for on in (Exception, RuntimeError, (OSError, atasks.AtasksError), "builtins.Exception"):
        retry = Retry(on=on)
        assert not retry.wants(diverged)
        assert not retry.wants(group)
        assert retry.is_last(1, diverged)
    for on in (Diverged, (OSError, "atasks.errors.Diverged"), lambda error: True):
        assert Retry(on=on).wants(diverged)
    assert Retry(on=(OSError, Diverged)).wants(group)


async def test_what_a_task_group_raises_is_tried_again() -> None:
    tries: list[int] = []

    @atask(retry=Retry(on=ConnectionError, wait=0.0, jitter=0.0))
    async def grouped() -> int:
        tries.append(current_call().try_)

        async def fail() -> None:
            if len(tries) < 3:
                raise ConnectionError("not yet")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
        return len(tries)

    async with atasks.connect("loopback:"):
        assert await soon(grouped()) == 3
    assert tries == [1, 2, 3]


def test_as_plain_data() -> None:
    retry = Retry(on=(Busy, OSError), attempts=7, until=None)
    data = retry.described()
    assert data["on"] == [f"{__name__}.Busy", "builtins.OSError"]
    restored = Retry.restored(data)
    assert (restored.attempts, restored.until, restored.wants(Busy())) == (7, None, True)
    with pytest.raises(TypeError, match="function"):
        Retry(on=callable).described()
    for bad in ({}, {"on": "app.Busy"}, {"on": [3]}, {**data, "more": 1}, None):
        with pytest.raises(TypeError):
            Retry.restored(bad)
    assert pickle.loads(pickle.dumps(retry)) == copy.copy(retry) == retry


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_retry_after_takes_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds, 0 or more"):
        RetryAfter(seconds)
    with pytest.raises(TypeError):
        RetryAfter("3")  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-5, float("inf"), float("nan")])
def test_a_time_in_a_message_that_is_none_does_not_count(seconds: float) -> None:
    """A codec sets the attributes of an exception, and does not call its class."""
    error = RetryAfter(1)
    error.seconds = seconds
    assert Retry(on=OSError, wait=3.0, jitter=0.0).pause(error, 1) == 3.0


def test_a_time_in_a_message_that_no_timer_takes_is_one_of_years() -> None:
    error = RetryAfter(1)
    error.seconds = 10**400
    assert Retry(on=OSError).pause(error, 1) == MAX_TIMEOUT


class Losing(LoopbackTransport):
    """Ends the first calls in this way."""

    endings: list[Callable[[Pending], None]]

    def _post(self, pending: Pending) -> None:
        if self.endings:
            self.endings.pop(0)(pending)
        else:
            super()._post(pending)


def worker_lost(pending: Pending) -> None:
    pending.answered(ended(pending.call.id, Status.WORKER_LOST, "the worker died", attempts=3))


def connection_lost(pending: Pending) -> None:
    pending.fail(CallConnectionLost("lost"))


@pytest.mark.parametrize(
    ("on", "ending"),
    [(WorkerLost, worker_lost), (CallConnectionLost, connection_lost), (OSError, connection_lost)],
)
async def test_what_the_transport_says_is_tried_again_if_it_is_named(
    on: type[Exception], ending: Callable[[Pending], None]
) -> None:
    space = f"retry-{on.__name__}-{ending.__name__}"

    @atask(name="lost", namespace=space, retry=Retry(on=on, wait=0.0, jitter=0.0), delivery="at_most_once")
    async def lost() -> tuple[int | None, bool]:
        call = current_call()
        return call.try_, call.key != call.id

    transport = Losing(space)
    await transport.connect()
    await atasks.get_router(space).activate(transport)
    transport.endings = [ending, ending]
    assert await soon(lost()) == (3, True)
    transport.endings = [ending]
    with pytest.raises((WorkerLost, CallConnectionLost)):
        await soon(lost.options(retry=None)())
    await atasks.get_router(space).deactivate()
    await transport.disconnect()


async def test_leaving_the_connection_ends_a_pause() -> None:
    tried = asyncio.Event()

    @atask(name="retry-left", retry=Retry(on=ConnectionError, wait=3600.0, wait_max=3600.0, until=None))
    async def fails() -> None:
        tried.set()
        raise ConnectionError

    async with atasks.connect("loopback:"):
        call = asyncio.create_task(fails())
        await soon(tried.wait())
        for _ in range(10):
            await asyncio.sleep(0)
    with pytest.raises((ConnectionError, atasks.NotConnected)):
        await soon(call)


async def test_sleep_outside_of_an_atask_is_that_of_asyncio() -> None:
    await soon(atasks.sleep(0))


# -- the libraries that people have


def counted(name: str, failures: int) -> tuple[Callable[[], Any], list[int]]:
    calls: list[int] = []

    async def flaky() -> int:
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionError(name)
        return len(calls)

    flaky.__qualname__ = flaky.__name__ = name
    return flaky, calls


async def test_tenacity_above_and_below() -> None:
    flaky, calls = counted("tenacious", 2)
    retry = tenacity.retry(
        retry=tenacity.retry_if_exception_type(ConnectionError), stop=tenacity.stop_after_attempt(5), reraise=True
    )
    below = atask(retry(flaky), name="tenacity-below")
    above = retry(atask(flaky, name="tenacity-above"))
    async with atasks.connect("loopback:"):
        assert await soon(below()) == 3
        calls.clear()
        assert await soon(above()) == 3


async def test_stamina_above_and_below() -> None:
    flaky, calls = counted("stamina", 2)
    retry = stamina.retry(on=ConnectionError, attempts=5, wait_initial=0.001, wait_jitter=0.0)
    below = atask(retry(flaky), name="stamina-below")
    above = retry(atask(flaky, name="stamina-above"))
    async with atasks.connect("loopback:"):
        assert await soon(below()) == 3
        calls.clear()
        assert await soon(above()) == 3


@pytest.mark.parametrize("holds", [True, False])
async def test_who_holds_the_slot_in_a_pause(holds: bool) -> None:
    """A loop in the body holds it; a `Retry` does not."""
    flaky, calls = counted("holding", 1)
    release = asyncio.Event()

    async def pause(seconds: float) -> None:
        await release.wait()

    looping = tenacity.retry(sleep=pause, reraise=True)(flaky)
    name = f"slot-{holds}"
    inner = atask(looping if holds else flaky, name=name)
    if not holds:
        inner = inner.options(retry=Retry(on=ConnectionError, wait=0.2, jitter=0.0))

    @atask(name=f"other-{name}")
    async def other() -> int:
        return len(calls)

    async with atasks.connect("loopback:", concurrency=1):
        call = asyncio.create_task(inner())
        while not calls:
            await asyncio.sleep(0)
        if holds:
            with pytest.raises(CallTimeout):
                await other.options(timeout=0.05)()
            release.set()
        else:
            assert await soon(other()) == 1
        assert await soon(call) == 2
