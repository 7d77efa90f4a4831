"""A stranger reaches no sealed call: it may publish, and has no key that anybody knows."""

# Private attributes: `Attempts._claims`: nobody else knows that no question is open.

from __future__ import annotations

import asyncio
import time
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from atasks.signing import CONTENT_TYPE
from atasks.testing import Site, soon, until
from atasks.transport import refusals
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller import presence
from tests.amqp.seals.attacker import (
    CLAIM,
    DECODE_ERROR,
    REPLY,
    UP,
    VALUE,
    Attacker,
    call,
    decode,
    echo_body,
    encode,
    fields,
    forged,
    over_both,
    ran,
    refused,
    running,
)
from tests.keys import KeyFiles


@over_both
async def test_a_request_that_nobody_known_sealed_is_neither_run_nor_answered(
    site: Site, attacker: Attacker, keys: KeyFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async with site.open():
        dead = await attacker.peer.dead_letters()
        work = attacker.peer.work_queue()
        shop = keys.key("shop")
        for key in (None, forged("stranger"), forged("shop")):
            await attacker.call(key, "echo", "forged")
        await attacker.publish(echo_body, work, shop, destination=f"{work}er")
        await attacker.publish(echo_body, work, shop, "reply")
        message = await attacker.publish(echo_body, f"{work}.nowhere", shop, destination=work)
        message.reply_to = "another"
        await attacker.publish_again(message, work)
        message.reply_to, message.message_id = attacker.peer.replies.name, "another"
        await attacker.publish_again(message, work)
        message.body = message.body[:-1] + b"\x02"
        await attacker.publish_again(message, work)
        message.content_type = "application/vnd.atasks.v1+msgpack"
        await attacker.publish_again(message, work)
        message.content_type, message.body = CONTENT_TYPE, b"\xc1\x09"
        await attacker.publish_again(message, work)
        for _ in range(10):
            await soon(dead.get())
        assert refused(site.worker.transport) == {
            "unsealed": 2,
            "unknown key": 1,
            "wrong seal": 6,
            "unreadable seal": 1,
        }
        assert await call(site, "echo", 1) == 1
        assert ran(site) == [1]
        assert attacker.peer.unread.empty()
    lines = [record.getMessage() for record in caplog.records if record.name == "atasks.keys"]
    assert len(lines) == 1
    assert "forged" not in caplog.text
    assert keys.lines["shop"].split()[1] not in caplog.text


@over_both
async def test_a_request_that_was_recorded_is_not_run_again(
    site: Site, attacker: Attacker, keys: KeyFiles, amqp_url: str
) -> None:
    async with site.open():
        dead = await attacker.peer.dead_letters()
        work = attacker.peer.work_queue()
        message = await attacker.publish(echo_body, work, keys.key("shop"))
        ((_, _, call_id, status, *_),) = await attacker.answer(keys.key("shop"))
        assert (call_id, status) == ("an-id", VALUE)
        for _ in range(3):
            await attacker.publish_again(message, work)
            await soon(dead.get())
        assert ran(site) == [1]
        assert refused(site.worker.transport) == {"replayed": 3}
        assert attacker.peer.unread.empty()
        # its owner may send it again: that is another seal
        await attacker.publish(echo_body, work, keys.key("shop"), message_id=message.message_id)
        ((_, _, call_id, *_),) = await attacker.answer(keys.key("shop"))
        assert call_id == "an-id"
        assert ran(site) == [1]


async def test_a_recorded_request_does_not_run_after_its_deadline_or_seven_days(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    async with site.open():
        shop, week = keys.key("shop"), 7 * 86_400
        await attacker.call(shop, "echo", 1, issued=time.time() - week + 60)
        ((_, _, _, status, *_),) = await attacker.answer(shop)
        assert status == VALUE
        for issued in (time.time() - week - 60, time.time() + week + 60, 0.0, 2.0**63 / 1000):
            await attacker.call(shop, "echo", 2, issued=issued)
            ((_, _, _, status, payload, *_),) = await attacker.answer(shop)
            assert status == DECODE_ERROR
            assert "key 'shop' sealed it more than 604800 s ago" in decode(payload)[0]
        sent = time.time() - 70
        await attacker.call(shop, "echo", 3, fields=(5_000, int(sent * 1000)), issued=sent)
        ((_, _, _, status, payload, *_),) = await attacker.answer(shop)
        assert status == DECODE_ERROR
        assert "key 'shop' sealed it more than 65 s ago" in decode(payload)[0]
        assert ran(site) == [1]
        assert refused(site.worker.transport) == {"too old": 5}


@over_both
async def test_a_call_that_runs_at_most_once_does_so_though_it_was_recorded(
    site: Site, attacker: Attacker, amqp_url: str
) -> None:
    """Recorded on the way to a worker, and sent to another one, which has not seen it."""
    async with site.open(serve=False):
        await attacker.peer.channel.declare_queue(
            attacker.peer.work_queue(), durable=True, arguments=arguments_of(site)
        )
        task = asyncio.create_task(call(site, "echo", "once", delivery="at_most_once"))
        queue = await attacker.peer.channel.get_queue(attacker.peer.work_queue())
        message = await get(queue)
        first, second = await site.serve(queues=["default"]), await site.serve(queues=["other"])
        again = copy_of(message)
        await attacker.publish_again(again, attacker.peer.work_queue())
        assert await soon(task) == "once"
        await first.drain()
        third = await site.serve(queues=["default"])
        for _ in range(3):
            await attacker.publish_again(copy_of(message), attacker.peer.work_queue())
        await until(lambda: refused(third.transport).get("replayed") == 2)
        await until(lambda: not third.transport.serving.attempts._claims)  # type: ignore[attr-defined]
        assert ran(site) == ["once"]
        assert second.started == 0


def arguments_of(site: Site) -> dict[str, Any]:
    transport = site.caller
    assert isinstance(transport, AMQPTransport)
    return transport.session.topology.work_arguments()


async def get(queue: Any) -> AbstractIncomingMessage:
    async with asyncio.timeout(60):
        while (message := await queue.get(no_ack=True, fail=False)) is None:
            await asyncio.sleep(0.02)
    found: AbstractIncomingMessage = message
    return found


def copy_of(message: AbstractIncomingMessage) -> aio_pika.Message:
    return aio_pika.Message(
        message.body,
        content_type=message.content_type,
        reply_to=message.reply_to,
        message_id=message.message_id,
        delivery_mode=message.delivery_mode,
    )


async def test_an_at_most_once_call_whose_caller_does_not_answer_is_not_started(
    site: Site, attacker: Attacker, keys: KeyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.open():
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        assert transport.serving is not None
        monkeypatch.setattr(transport.serving.attempts, "patience", 0.5)
        call_id = await attacker.call(keys.key("shop"), "echo", "silent", fields=fields(delivery=1))
        ((tag, _, claimed, attempt, *_),) = await attacker.answer(keys.key("shop"))
        assert (tag, claimed, attempt) == (CLAIM, call_id, 1)
        attempts = transport.serving.attempts
        await until(lambda: not attempts._claims)
        assert ran(site) == []


async def test_anybody_may_announce_a_worker_and_gains_little(
    site: Site, attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Up` has no seal. It makes a caller ask for its calls, once a second at most."""
    monkeypatch.setattr(presence, "DEAF_SECONDS", 0.3)
    async with site.open():
        task, _ = await running(site)
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        suspected: list[Any] = []
        monkeypatch.setattr(transport.calling.overdue, "suspect", suspected.append)
        key = f"up:{site.namespace}:default"
        await until(lambda: "default" in transport.calling.presence.listening)
        await asyncio.sleep(0.4)  # the worker has announced itself
        began = time.monotonic()
        for _ in range(50):
            await attacker.say(None, [UP, 1, site.namespace, "default", "w2"], key)
        await attacker.say(
            None,
            [REPLY, 1, next(iter(transport.session.pendings.values())).call.id, VALUE, encode(1), "msgpack"],
            key,
        )
        await attacker.say(None, [UP, 1, site.namespace, "nowhere", "w2"], key)
        await until(lambda: len(suspected) >= 2)
        await asyncio.sleep(0.5)
        assert len(suspected) <= 1 + (time.monotonic() - began) / 0.3
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: site.worker.held == 0)


async def test_lost_refusals_are_counted_once_a_minute(
    site: Site, attacker: Attacker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "REPORT_SECONDS", 3.0)
    async with site.open():
        dead = await attacker.peer.dead_letters()

        async def flood(number: int) -> None:
            for _ in range(number):
                await attacker.call(None, "echo")
            for _ in range(number):
                await soon(dead.get())

        await flood(20)
        await asyncio.sleep(3.1)
        await flood(1)
        lines = [record.getMessage() for record in caplog.records if record.name == "atasks.keys"]
        assert len(lines) == 2
        assert "refused: 1 unsealed;" in lines[0]
        assert "refused: 20 unsealed;" in lines[1]
