"""Policies of the broker that drop calls."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import atasks
from atasks import UnknownRun, atask
from atasks.testing import soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.worker.returned_request import ReturnedRequest
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import counting, echo, gated, leaf, work
from tests.faults.workers import Fleet


@pytest.fixture
def policy(request: pytest.FixtureRequest, node: Broker, prefix: str) -> Iterator[None]:
    """A policy for the work queues of this test."""
    pattern = rf"^{prefix}\.q\."
    node.ctl("set_policy", "--apply-to", "queues", prefix, pattern, json.dumps(request.param))
    yield
    node.ctl("clear_policy", prefix)


DROPPING = [
    {"max-length": 10, "overflow": "drop-head"},
    {"message-ttl": 500},
    {"max-length-bytes": 4000},
    {"max-length": 3, "message-ttl": 700},
]


@pytest.mark.parametrize("policy", DROPPING, indirect=True)
@pytest.mark.usefixtures("policy")
async def test_calls_that_a_policy_drops_come_back_promptly(fleet: Fleet, history: History, prefix: str) -> None:
    fleet.start_one(concurrency=5)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        began = time.monotonic()
        calls = history.start(30, work, 0.4, batch=False)
        await settled(asyncio.gather(*calls), "calls of which some are dropped")
        assert time.monotonic() - began < 30
    history.completed()
    history.check()


@pytest.mark.parametrize("policy", [{"message-ttl": 500}], indirect=True)
@pytest.mark.usefixtures("policy")
async def test_calls_that_expire_before_a_worker_comes_are_there_when_it_comes(
    fleet: Fleet, history: History, prefix: str
) -> None:
    fleet.start_one().stop()
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        calls = history.start(20, echo)
        await asyncio.sleep(3)
        assert sum(queue.messages for queue in fleet.queues() if ".q." in queue.name) == 0, "they have expired"
        fleet.start_one()
        began = time.monotonic()
        await settled(asyncio.gather(*calls), "calls that have expired")
        assert time.monotonic() - began < 10
    history.completed()


async def test_calls_that_run_are_not_taken_for_lost(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    fleet.start(2, concurrency=5)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        calls = history.start(10, gated, str(tmp_path / "gate"))
        blocked = history.start(3, gated, str(tmp_path / "gate"), delivery="at_most_once")
        await until(lambda: history.started() == 10, "all slots in use")
        await asyncio.sleep(8)
        (tmp_path / "gate").touch()
        await settled(asyncio.gather(*calls, *blocked), "calls that run for long")
        assert not history.resent
    history.completed()
    history.check()
    assert len(history.runs()) == 13


@pytest.mark.parametrize("rules", [{"max-length-bytes": 2000}, {"max-length": 1}])
async def test_replies_that_a_queue_refuses_are_sent_again_soon(
    node: Broker, fleet: Fleet, prefix: str, rules: dict[str, int]
) -> None:
    text = json.dumps({**rules, "overflow": "reject-publish"})
    node.ctl("set_policy", "--apply-to", "queues", prefix, rf"^{prefix}\.r\.", text)
    try:
        fleet.start(2)
        async with atasks.connect(fleet.broker.url, prefix=prefix):
            assert await settled(asyncio.gather(*map(leaf, range(3000))), "calls", 20) == list(range(3000))
            items = [number async for number, _ in counting("stream", 500, __file__)]
            assert items == list(range(500))
    finally:
        node.ctl("clear_policy", prefix)


REFUSING = {"max-length": 3, "overflow": "reject-publish"}


async def test_a_caller_whose_queue_refuses_everything_keeps_no_other_waiting(
    node: Broker, prefix: str, cleanup: None
) -> None:
    ran: list[int] = []

    @atask(namespace=prefix, batch=False)
    async def number(n: int) -> int:
        ran.append(n)
        return n

    connect = partial(atasks.connect, node.url, namespace=prefix, prefix=prefix)
    async with (
        atasks.serve(node.url, namespace=prefix, prefix=prefix, concurrency=3, grace=0),
        connect() as full,
    ):
        assert isinstance(full, AMQPTransport)
        queue = full.session.reply_queue
        text = json.dumps({"max-length-bytes": 1, "overflow": "reject-publish"})
        node.ctl("set_policy", "--apply-to", "queues", prefix, f"^{re.escape(queue)}$", text)
        calls = [asyncio.create_task(number(n)) for n in range(50)]
        try:
            await until(lambda: len(ran) == len(calls), "all calls of the caller whose queue is full run")
            async with connect():
                assert await soon(asyncio.gather(*map(number, range(20)))) == list(range(20))
            assert not any(call.done() for call in calls)
        finally:
            node.ctl("clear_policy", prefix)
        assert await settled(asyncio.gather(*calls), "calls of the caller whose queue was full") == list(range(50))


class Three:
    """Calls of an atask of which three share a message, and wait."""

    def __init__(self, prefix: str) -> None:
        self.began: list[int] = []
        self.gate = asyncio.Event()

        @atask(namespace=prefix, batch=3)
        async def number(n: int) -> int:
            self.began.append(n)
            await self.gate.wait()
            return n

        self.number = number


def fill(node: Broker, prefix: str) -> None:
    """Have the work queues refuse everything."""
    text = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    node.ctl("set_policy", "--apply-to", "queues", prefix, rf"^{prefix}\.q\.", text)


async def test_a_call_that_a_full_queue_refuses_takes_none_that_runs_with_it(
    node: Broker, prefix: str, cleanup: None
) -> None:
    three = Three(prefix)
    serve = partial(atasks.serve, node.url, namespace=prefix, prefix=prefix, concurrency=1)
    async with atasks.connect(node.url, namespace=prefix, prefix=prefix), serve() as leaving:
        calls = [asyncio.create_task(three.number(n)) for n in range(3)]
        await until(lambda: leaving.unstarted == 2, "the message has come")
        fill(node, prefix)
        draining = asyncio.create_task(leaving.drain())
        async with serve():
            try:
                await asyncio.sleep(2)
                assert three.began == [0]
            finally:
                node.ctl("clear_policy", prefix)
            await until(lambda: len(three.began) > 1, "another call of the message begins")
            await asyncio.sleep(1)
            three.gate.set()
            assert await settled(asyncio.gather(*calls), "calls of one message") == [0, 1, 2]
            await draining
    assert sorted(three.began) == [0, 1, 2]


@pytest.mark.parametrize("waits", [False, True], ids=["refused", "waits to leave"])
async def test_a_call_that_a_full_queue_refuses_does_not_go_back_over_the_next_link(
    node: Broker, prefix: str, cleanup: None, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """The broker delivers its message again: there would be two of it. The link is lost before the call is to go
    back once more, or when it waits behind others that are not confirmed."""
    refused: list[int] = []
    confirmed: list[int] = []
    refuse, confirm = ReturnedRequest.refused, ReturnedRequest.confirmed
    monkeypatch.setattr(ReturnedRequest, "refused", lambda item: (refused.append(1), refuse(item)))
    monkeypatch.setattr(ReturnedRequest, "confirmed", lambda item: (confirmed.append(1), confirm(item)))
    three = Three(prefix)
    serve = partial(atasks.serve, namespace=prefix, prefix=prefix, concurrency=1)
    async with atasks.connect(node.url, namespace=prefix, prefix=prefix), serve(proxy.url()) as leaving:
        calls = [asyncio.create_task(three.number(n)) for n in range(3)]
        await until(lambda: leaving.unstarted == 2, "the message has come")
        fill(node, prefix)
        accepted = proxy.accepted
        draining = asyncio.create_task(leaving.drain())
        await until(lambda: len(refused) == 2, "two calls are refused")
        session = leaving.transport.session
        if waits:
            outbox = session.outbox
            monkeypatch.setattr("atasks.transport.backends.amqp.broker.outbox.MAX_UNCONFIRMED", 0)
            await until(lambda: len(outbox) == 2, "both wait to go back once more")
        proxy.drop()
        if waits:
            await until(lambda: session.link is None, "the link is lost")
            monkeypatch.setattr("atasks.transport.backends.amqp.broker.outbox.MAX_UNCONFIRMED", 1000)
        await asyncio.to_thread(node.ctl, "clear_policy", prefix)
        await until(
            lambda: proxy.accepted > accepted and session.link is not None, "the worker is connected again"
        )
        await asyncio.sleep(2)
        three.gate.set()
        assert (len(refused), confirmed) == (2, [])
        async with serve(node.url):
            assert await settled(asyncio.gather(*calls), "calls of one message") == [0, 1, 2]
            await draining


@pytest.mark.parametrize("rules", [REFUSING, {"message-ttl": 200}, {"max-length": 2}])
async def test_a_journal_that_a_policy_bounds_does_not_slow_its_call(
    node: Broker, prefix: str, cleanup: None, rules: dict[str, object]
) -> None:
    @atask(namespace=prefix)
    async def step(n: int) -> int:
        return n

    @atask(namespace=prefix, resume=True)
    async def steps(count: int) -> int:
        return sum([await step(n) for n in range(count)])

    node.ctl("set_policy", "--apply-to", "queues", prefix, rf"^{prefix}\.run\.", json.dumps(rules))
    try:
        async with (
            atasks.serve(node.url, namespace=prefix, prefix=prefix, concurrency=3, grace=0),
            atasks.connect(node.url, namespace=prefix, prefix=prefix),
        ):
            assert await soon(asyncio.gather(*(steps(20) for _ in range(3)))) == [190] * 3
    finally:
        node.ctl("clear_policy", prefix)


@pytest.mark.parametrize("unique", [False, True])
async def test_a_record_whose_contents_have_expired_keeps_nobody_waiting(
    node: Broker, prefix: str, cleanup: None, unique: bool
) -> None:
    ran: list[int] = []

    @atask(namespace=prefix)
    async def number(n: int) -> int:
        ran.append(n)
        return n

    node.ctl("set_policy", "--apply-to", "queues", prefix, rf"^{prefix}\.run\.", json.dumps({"message-ttl": 200}))
    try:
        async with (
            atasks.serve(node.url, namespace=prefix, prefix=prefix, concurrency=3, grace=0),
            atasks.connect(node.url, namespace=prefix, prefix=prefix),
        ):
            keys = [f"key {n}" if unique else None for n in range(10)]
            handles = [await number.options(delay=1.5, unique=key).submit(-1) for key in keys]
            await asyncio.sleep(1)
            waiting = [asyncio.create_task(_outcome(handle)) for handle in handles * 2]
            await asyncio.sleep(2)
            assert await soon(asyncio.gather(*map(number, range(20)))) == list(range(20))
            for outcome in await settled(asyncio.gather(*waiting), "handles whose records are empty", 30):
                assert isinstance(outcome, UnknownRun)
            await until(lambda: ran.count(-1) == 10, "calls run without a record")
    finally:
        node.ctl("clear_policy", prefix)


@pytest.mark.parametrize("rules", [{"message-ttl": 200}, {"max-length": 1}])
async def test_a_call_that_nobody_awaits_and_that_a_policy_drops_is_in_the_dead_queue(
    node: Broker, prefix: str, cleanup: None, rules: dict[str, int]
) -> None:
    @atask(namespace=prefix, keep=0)
    async def number(n: int) -> None: ...

    async with atasks.serve(node.url, namespace=prefix, prefix=prefix):
        pass  # so there are its queues
    node.ctl("set_policy", "--apply-to", "queues", prefix, rf"^{prefix}\.q\.", json.dumps(rules))
    try:
        async with atasks.connect(node.url, namespace=prefix, prefix=prefix):
            for n in range(3):
                await number.submit(n)

        def dead() -> int:
            return sum(queue.messages for queue in node.queues() if queue.name == f"{prefix}.dead")

        await until(
            lambda: dead() == (3 if "message-ttl" in rules else 2), "what was dropped is in the dead queue"
        )
    finally:
        node.ctl("clear_policy", prefix)


async def _outcome(handle: atasks.Handle[int]) -> int | BaseException:
    try:
        return await handle
    except UnknownRun as error:
        return error
