"""Limits: what they take, and counters that hand out tokens."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import atasks
from atasks import Limit, LimitError, NotConnected, atask
from atasks.policies.limit import Rule
from atasks.testing import soon
from atasks.transport.limits import contract, memory
from atasks.transport.limits.pool import TokenPool


async def looked_up(user: str) -> str:
    return user


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({}, ValueError, "limits nothing"),
        ({"at_once": 0}, ValueError, "at_once=0"),
        ({"at_once": 1.5}, TypeError, "at_once"),
        ({"at_once": True}, TypeError, "at_once"),
        ({"per_second": 0}, ValueError, "per_second"),
        ({"per_second": -1}, ValueError, "per_second"),
        ({"per_second": float("nan")}, ValueError, "NaN"),
        ({"per_second": 1.5}, ValueError, "whole number"),
        ({"per_second": 5, "period": 0}, ValueError, "period"),
        ({"per_second": 5, "period": 0.001}, ValueError, "period"),
        ({"at_once": 1, "period": 5}, ValueError, "period is for per_second"),
        ({"at_once": 1, "key": "user"}, TypeError, "key is a function"),
        ({"at_once": 1, "key": looked_up}, TypeError, "a plain function"),
        ({"at_once": 1, "namespace": "a b"}, ValueError, "namespace"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Limit("limit", **arguments)


@pytest.mark.parametrize("name", ["", "two words", "n" * 61, "ä"])
def test_names_that_no_broker_takes(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Limit(name, at_once=1)


def test_rates() -> None:
    assert Limit("a", per_second=5).rule == Rule(0, 5, 1.0)
    assert Limit("a", per_second=0.1).rule == Rule(0, 1, 10.0)
    assert Limit("a", per_second=100 / 60, period=60).rule == Rule(0, 100, 60.0)
    assert Limit("a", per_second=1.5, period=2, at_once=7).rule == Rule(7, 3, 2.0)
    assert str(Limit("a", per_second=1.5, period=2, at_once=7).rule) == "at_once=7 and 3 in 2 s"


def test_a_limit_travels() -> None:
    limit = Limit("a", at_once=2, per_second=100 / 60, period=60, namespace="elsewhere")
    other = pickle.loads(pickle.dumps(limit))
    assert (other.name, other.rule, other.namespace) == (limit.name, limit.rule, limit.namespace)
    assert copy.copy(limit).rule == limit.rule


def test_it_is_of_the_worker_and_of_no_call() -> None:
    @atask(name="limit-of-worker", limit=Limit("a", at_once=1))
    async def limited() -> None: ...

    with pytest.raises(TypeError, match="set where the atask is defined"):
        limited.options(limit=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="limit is a Limit"):
        atask(limited.local, name="limit-refused", limit=3)  # type: ignore[arg-type]


def test_keys() -> None:
    limit = Limit("a", at_once=1, key=lambda user: user)
    assert limit.key_of((3,), {}) == "3"
    assert limit.key_of(("ann",), {}) == "ann"
    strange = limit.key_of(("ann smith/ü\udc00",), {})
    assert strange is not None
    assert len(strange) == 40
    for bad in (None, 1.5, True, b"ann"):
        with pytest.raises(TypeError, match="text or a whole number"):
            limit.key_of((bad,), {})
    with pytest.raises(TypeError, match=r"limit\.of"):
        _ = limit.sync
    with pytest.raises(TypeError, match="has no key"):
        Limit("b", at_once=1).of("ann")


async def test_a_limit_with_a_key_is_not_entered_without_a_value() -> None:
    with pytest.raises(TypeError, match=r"limit\.of"):
        async with Limit("a", at_once=1, key=lambda user: user):
            pass


async def test_outside_of_a_connection() -> None:
    limit = Limit("a", at_once=1, namespace="limit-outside")
    with pytest.raises((NotConnected, AttributeError)):
        async with limit:
            pass


async def test_who_waits_has_its_turn_in_order() -> None:
    limit, order = Limit("order", at_once=1), []

    async def visit(n: int) -> None:
        async with limit:
            order.append(n)
            await asyncio.sleep(0)

    async with atasks.connect("loopback:"):
        await soon(asyncio.gather(*map(visit, range(50))))
    assert order == list(range(50))


async def test_a_limit_is_held_as_often_as_it_is_entered() -> None:
    limit = Limit("twice", at_once=2)
    async with atasks.connect("loopback:"):
        async with limit, limit:
            waiting = asyncio.create_task(limit.__aenter__())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait((waiting,))
        async with limit, limit:
            pass


async def test_a_limit_may_be_left_by_another_task_than_has_entered_it() -> None:
    limit = Limit("left-by-another", at_once=1)

    async def numbers() -> AsyncIterator[int]:
        async with limit:
            for n in range(3):
                yield n

    async def begin(stream: AsyncIterator[int]) -> None:
        assert await anext(stream) == 0

    async with atasks.connect("loopback:"):
        await asyncio.create_task(begin(numbers()))  # nobody reads on: asyncio closes it, in a task of its own
        async with contextlib.AsyncExitStack() as stack:
            await soon(asyncio.create_task(stack.enter_async_context(limit)))
            waiting = asyncio.create_task(limit.__aenter__())
            await asyncio.sleep(0)
            assert not waiting.done()
        await soon(waiting)
        await limit.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="was not entered"):
            await limit.__aexit__(None, None, None)
        async with limit:
            pass


async def test_a_limit_may_be_left_by_another_thread_than_has_entered_it() -> None:
    limit = Limit("left-by-a-thread", at_once=1)
    async with atasks.connect("loopback:"):
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            for _ in range(2):
                stack = contextlib.ExitStack()
                await soon(asyncio.wrap_future(one.submit(stack.enter_context, limit.sync)))
                await soon(asyncio.wrap_future(other.submit(stack.close)))
        async with limit:
            pass


async def test_a_connection_that_is_left_keeps_nobody_waiting() -> None:
    limit = Limit("left", at_once=1)
    async with atasks.connect("loopback:"):
        await limit.__aenter__()
        waiting = asyncio.create_task(limit.__aenter__())
        await asyncio.sleep(0)
    with pytest.raises(NotConnected):
        await soon(waiting)
    await limit.__aexit__(None, None, None)


async def test_a_rate_comes_spread_over_its_period_and_unused_tokens_are_not_spent() -> None:
    pool = TokenPool(Rule(0, 4, 0.2))
    loop, came = asyncio.get_running_loop(), []
    began = loop.time()
    unused = pool.ask(lambda: None)
    assert unused.is_held
    unused.release()
    done = asyncio.Event()

    def take() -> None:
        came.append(loop.time() - began)
        if len(grants) >= len(came):
            grants[len(came) - 1].begin()
        if len(came) == 8:
            done.set()

    grants: list[Any] = []
    for _ in range(8):
        grants.append(pool.ask(take))
        if grants[-1].is_held:
            grants[-1].begin()
    await soon(done.wait())
    assert came[0] < 0.1
    assert came[4] - came[0] >= 0.19
    assert came[7] - came[3] >= 0.19
    pool.close()


async def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_KEYS", 3)
    assert contract.MAX_KEYS == 1000
    limit = Limit("bounded", at_once=1, key=lambda n: n)
    async with atasks.connect("loopback:"):
        for n in range(10):
            async with limit.of(n):
                pass
        async with limit.of(1), limit.of(2), limit.of(3):
            with pytest.raises(LimitError, match="key more"):
                async with limit.of(4):
                    pass
