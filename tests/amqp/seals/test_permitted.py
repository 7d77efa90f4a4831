"""A caller, and a worker, may do what the line of its key says."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import DecodeError, InvalidKeys, schedule, schedules
from atasks.pipeline import map
from atasks.signing import CONTENT_TYPE, Key
from atasks.testing import Site, soon, until
from atasks.tracking.fleet import Fleet
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.seals.attacker import (
    ASK,
    CALL,
    CANCEL,
    DECODE_ERROR,
    HELD,
    REPLY,
    VALUE,
    Attacker,
    call,
    decode,
    encode,
    fields,
    over_both,
    ran,
    refused,
    running,
    task_of,
)
from tests.keys import KeyFiles, caller_first

FORBIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "another-task": ({"task": "secret"}, "key 'thief' may not call 'secret'"),
    "a-run": ({"task": "atasks.pipeline.run"}, "key 'thief' may not call 'atasks.pipeline.run'"),
    "another-caller": ({"fields": fields(by="shop")}, "key 'thief' may not name another caller"),
    "itself": ({"fields": fields(by="thief")}, "key 'thief' may not name another caller"),
    "a-later-attempt": ({"fields": fields(attempt=2)}, "key 'thief' may not say which attempt it is"),
    "another-queue": ({"queue": "other"}, "key 'thief' may not use queue 'other'"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_a_caller_may_do_what_its_line_says(
    name: str, site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    what, message = FORBIDDEN[name]
    thief = keys.key("thief")
    async with site.open(serve=False):
        worker = await site.serve(queues=["default", "other"])
        call_id = uuid.uuid4().hex
        body = encode(
            [[CALL, 1, call_id, what.get("task", "echo"), encode([[1], {}]), "msgpack", *what.get("fields", ())]]
        )
        await attacker.publish(body, attacker.peer.work_queue(str(what.get("queue", "default"))), thief)
        ((tag, _, answered, status, payload, *_),) = await attacker.answer(thief)
        assert (tag, answered, status) == (REPLY, call_id, DECODE_ERROR)
        assert message in decode(payload)[0]
        assert refused(worker.transport) == {"not allowed": 1}
        assert ran(site) == []
        await attacker.call(thief, "echo", 2)
        ((_, _, _, status, *_),) = await attacker.answer(thief)
        assert status == VALUE


@over_both
async def test_attempts_are_capped_by_the_key(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        await attacker.call(keys.key("thief"), "count", 10**6, fields=(*fields(max_attempts=10**6)[:9], 1))
        await until(lambda: site.worker.runs)
        assert site.worker.runs[0].call.max_attempts == 2
        site.worker.cancel(site.worker.runs[0].call.id)
        await until(lambda: site.worker.held == 0)


@pytest.mark.parametrize("fields", [fields(), fields(max_attempts=1)], ids=["first", "last"])
@over_both
async def test_a_caller_has_no_call_run_alone(
    site: Site, attacker: Attacker, keys: KeyFiles, fields: tuple[Any, ...]
) -> None:
    """A worker starts nothing beside a last attempt: a caller that puts calls where workers put these would have
    it for itself."""
    solo = f"{attacker.peer.work_queue()}.solo"

    async def send(name: str) -> None:
        body = encode([[CALL, 1, f"id-{name}", "forever", encode([[], {}]), "msgpack", *fields]])
        await attacker.publish(body, solo, keys.key(name), destination=attacker.peer.work_queue())

    async with site.open():
        await send("shop")
        ((_, _, answered, status, payload, *_),) = await attacker.answer(keys.key("shop"))
        assert (answered, status) == ("id-shop", DECODE_ERROR)
        assert "key 'shop' may not have a call run alone" in decode(payload)[0]
        assert refused(site.worker.transport) == {"not allowed": 1}
        assert await call(site, "echo", 1) == 1
        assert ran(site) == [1]
        await send("w")  # as a worker does that passes a call on
        await until(lambda: site.worker.holds("id-w"))
        site.worker.cancel("id-w")
        await until(lambda: site.worker.held == 0)


async def test_a_worker_may_ask_and_cancel(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    """A worker's key is trusted with that: it passes calls on, and asks what became of them."""
    async with site.open():
        call_id = await attacker.call(keys.key("shop"), "forever")
        await until(lambda: site.worker.holds(call_id))
        every = f"queue:{site.namespace}:default"
        await attacker.say(keys.key("w"), [ASK, 1, [call_id]], every)
        ((tag, _, ids, *_),) = await attacker.answer(keys.key("w"))
        assert (tag, ids) == (HELD, [call_id])
        await attacker.say(keys.key("w"), [CANCEL, 1, [call_id]], every)
        await until(lambda: site.worker.held == 0)


async def test_a_worker_names_whose_call_it_passes_on(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        await attacker.call(keys.key("w"), "echo", 1, fields=fields(by="thief", attempt=1))
        ((_, _, _, status, *_),) = await attacker.answer(keys.key("thief"))
        assert status == VALUE
        await attacker.call(keys.key("w"), "secret", fields=fields(by="thief"))
        ((_, _, _, status, payload, *_),) = await attacker.answer(keys.key("thief"))
        assert status == DECODE_ERROR
        assert "key 'thief' may not call 'secret'" in decode(payload)[0]
        dead = await attacker.peer.dead_letters()
        await attacker.call(keys.key("w"), "echo", 2, fields=fields(by="nobody"))
        await soon(dead.get())
        assert ran(site) == [1]
        assert refused(site.worker.transport) == {"not allowed": 1, "unknown key": 1}


@pytest.mark.parametrize("encrypt", [False, True])
@over_both
async def test_what_is_buried_stays_under_its_seal(
    site: Site, attacker: Attacker, keys: KeyFiles, encrypt: bool
) -> None:
    """A call in the name of a caller whose key is not known here yet: what was encrypted must not lie in the dead
    queue as it was before."""
    worker = keys.key("w")
    key = Key("w", worker.secret, serve=True, encrypt=encrypt)
    body = encode([[CALL, 1, "an-id", "echo", encode([["confidential"], {}]), "msgpack", *fields(by="nobody")]])
    async with site.open():
        dead = await attacker.peer.dead_letters()
        message = await attacker.publish(body, attacker.peer.work_queue(), key)
        buried = await soon(dead.get())
        assert buried.body == message.body
        assert buried.content_type == CONTENT_TYPE
        assert buried.headers["x-message-id"] == message.message_id
        assert (b"confidential" in buried.body) is not encrypt
    assert ran(site) == []


async def test_a_dead_message_that_can_be_opened_goes_back_under_its_seal(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    """A message that the broker has moved there lies there as it came."""
    key, queue = keys.key("shop"), attacker.peer.work_queue()
    body = encode([[CALL, 1, "an-id", "echo", encode([[1], {}]), "msgpack", *fields()]])
    async with site.open():
        message = await attacker.publish(body, "nowhere", key, destination=queue)
        message.headers["x-first-death-queue"] = queue
        await attacker.publish_again(message, f"{attacker.peer.prefix}.dead")
        async with Fleet(site.worker.transport).dead_letters() as dead:
            (found,) = dead.messages
            assert (found.sealed, found.tasks) == (True, ["echo"])
            assert await dead.retry([found]) == {}
        ((tag, _, call_id, status, *_),) = await attacker.answer(key)
        assert (tag, call_id, status) == (REPLY, "an-id", VALUE)
        assert ran(site) == [1]


async def test_a_message_of_several_callers_is_refused(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        body = encode(
            [
                [CALL, 1, f"id-{by}", "echo", encode([[1], {}]), "msgpack", *fields(by=by)]
                for by in ("shop", "thief")
            ]
        )
        await attacker.publish(body, attacker.peer.work_queue(), keys.key("w"))
        answers = await attacker.answer(keys.key("w"))
        assert [(answer[2], answer[3]) for answer in answers] == [
            ("id-shop", DECODE_ERROR),
            ("id-thief", DECODE_ERROR),
        ]
        assert ran(site) == []


async def test_the_stages_of_a_run_are_calls_of_its_submitter(
    amqp_url: str, prefix: str, tmp_path: Path, amqp_leaks: None
) -> None:
    keys = KeyFiles(tmp_path, shop="tasks=atasks.pipeline.run,echo")
    site = Site(caller_first(amqp_url, prefix, keys, "shop"))

    @site.atask(name="echo")
    async def echo(value: int) -> int:
        return value

    @site.atask(name="internal.pay")
    async def pay(value: int) -> int:
        raise AssertionError("it may not be called")

    async with site.open():
        handle = await (map(echo) | map(echo)).submit(5)
        assert await soon(handle) == 5
        forbidden = await (map(echo) | map(pay)).submit(5)
        with pytest.raises(DecodeError, match=r"key 'shop' may not call 'internal\.pay'"):
            await soon(forbidden)
    site.close()


async def test_a_call_that_kills_its_caller_s_reply_queue_goes_on_counting(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    """A caller may not say which attempt it is, so it begins anew with the attempts that are left."""
    async with site.open():
        task, call_id = await running(site)
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        pending = transport.session.pendings.get(call_id)
        assert pending is not None
        pending.call.attempt = 2
        await until(lambda: pending.confirmed)
        transport.calling.requests.resend([pending], "a test says so")
        await until(lambda: pending.confirmed)
        assert (pending.call.attempt, pending.call.max_attempts) == (1, 2)
        assert refused(site.worker.transport) == {}
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: site.worker.held == 0)


async def test_a_caller_does_not_write_over_the_schedules_of_workers(
    site: Site, amqp_url: str, prefix: str, keys: KeyFiles
) -> None:
    """A caller could not read what it replaces, and no worker would believe what it writes."""
    echo, name = task_of(site, "echo"), site.namespace
    options: dict[str, Any] = {"namespace": name, "prefix": prefix}
    async with atasks.connect(amqp_url, keys=keys.worker, **options):
        await soon(schedule("a-worker's", echo, [1], every=3600.0))
    async with atasks.connect(amqp_url, keys=keys.caller("shop"), **options):
        for attempt in (schedule("hers", echo, [1], every=3600.0), schedules(namespace=name)):
            with pytest.raises(InvalidKeys, match=r"key 'shop'.* may only call"):
                await soon(attempt)
    async with atasks.connect(amqp_url, keys=keys.worker, **options):
        assert [item.name for item in await soon(schedules(namespace=name))] == ["a-worker's"]
