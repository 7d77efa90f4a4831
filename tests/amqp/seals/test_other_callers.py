"""A stranger and another caller reach nothing of a caller whose messages are sealed."""

# Private attributes: `Seals._admitted`: what is remembered must not grow, which nothing else shows.

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from atasks import current_call
from atasks.pipeline import map
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport, seals
from atasks.transport.records.contract import again_id
from tests.amqp.seals.attacker import (
    ASK,
    CALL,
    CANCEL,
    CLAIM,
    CREDIT,
    DECODE_ERROR,
    END,
    GRANT,
    HELD,
    ITEM,
    REPLY,
    VALUE,
    Attacker,
    echo_body,
    encode,
    other_keys,
    ran,
    refused,
    running,
    task_of,
)
from tests.keys import KeyFiles


async def test_nobody_else_cancels_asks_for_or_takes_over_a_call(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    async with site.open():
        call_id = await attacker.call(keys.key("shop"), "forever")
        finished = await attacker.call(keys.key("shop"), "echo", "hers")
        assert (await attacker.answer(keys.key("shop")))[0][2] == finished
        every, worker = f"queue:{site.namespace}:default", f"worker:{site.worker.id}"
        for key in other_keys(keys).values():
            await attacker.say(key, [CANCEL, 1, [call_id]], every)
            await attacker.say(key, [CANCEL, 1, [call_id]], worker)
            await attacker.say(key, [ASK, 1, [call_id, finished]], every)
            await attacker.say(key, [CREDIT, 1, call_id, 0, 0], worker)
            await attacker.say(key, [GRANT, 1, call_id, call_id, True], worker)
            await attacker.say(key, [HELD, 1, [call_id], "w2"], worker)
            await attacker.say(key, [REPLY, 1, call_id, VALUE, encode(1), "msgpack"], worker)
            await attacker.publish(encode([[HELD, 1, [call_id], "w2"]]), f"{site.worker.id}", key, "control")
        await attacker.say(keys.key("shop"), [CANCEL, 1, [call_id]], every, issued=time.time() - 120)
        await until(lambda: refused(site.worker.transport).get("too old") == 1)
        assert refused(site.worker.transport) == {
            "unsealed": 7,
            "unknown key": 7,
            "wrong seal": 7,
            "not allowed": 8,
            "too old": 1,
        }
        assert site.worker.holds(call_id)
        assert attacker.peer.unread.empty()
        # the owner of the key can
        await attacker.say(keys.key("shop"), [ASK, 1, [call_id, finished]], every)
        (held,), (reply,) = [await attacker.answer(keys.key("shop")) for _ in range(2)]
        assert (held[0], held[2]) == (HELD, [call_id])
        assert (reply[0], reply[2]) == (REPLY, finished)
        await attacker.say(keys.key("shop"), [CANCEL, 1, [call_id]], every)
        await until(lambda: site.worker.held == 0)


async def test_nobody_else_is_answered_under_the_id_of_a_call(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    """A request that comes again is answered with the reply that there is: it has to come from the same caller."""
    async with site.open():
        work = attacker.peer.work_queue()
        runs = await attacker.call(keys.key("shop"), "forever")
        finished = await attacker.call(keys.key("shop"), "echo", "hers")
        assert (await attacker.answer(keys.key("shop")))[0][2] == finished
        bodies = [
            encode([[CALL, 1, id, "echo", encode([["his"], {}]), "msgpack"] for id in ids])
            for ids in ([finished], [runs], [runs, finished, "his-own"])
        ]
        thief = keys.key("thief")
        for body in bodies:
            await attacker.publish(body, work, thief)
        found = []
        while len(found) < 5:
            found += await attacker.answer(thief)
        assert sorted((each[2] == "his-own", each[3]) for each in found) == [(False, DECODE_ERROR)] * 4 + [
            (True, VALUE)
        ]
        assert refused(site.worker.transport) == {"not allowed": 4}
        await attacker.say(thief, [ASK, 1, [finished]], f"queue:{site.namespace}:default")
        await until(lambda: refused(site.worker.transport) == {"not allowed": 5})
        await attacker.publish(bodies[0], work, keys.key("shop"))
        ((_, _, call_id, status, payload, *_),) = await attacker.answer(keys.key("shop"))
        assert (call_id, status, payload) == (finished, VALUE, encode("hers"))
        assert len(site.worker.runs[0].deliveries) == 1
        await attacker.say(keys.key("shop"), [CANCEL, 1, [runs]], f"queue:{site.namespace}:default")
        await until(lambda: site.worker.held == 0)


async def test_the_owner_of_a_long_call_is_answered_again_after_many_other_calls(
    site: Site, attacker: Attacker, keys: KeyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker remembers replies of calls that have ended, and requests that came lately: that of a long call came
    long ago."""
    monkeypatch.setattr(seals, "OWNERS", 3)
    gate = asyncio.Event()

    @site.atask(name="long")
    async def long() -> str:
        await gate.wait()
        return "hers"

    shop, work = keys.key("shop"), attacker.peer.work_queue()
    async with site.open():
        call_id = await attacker.call(shop, "long")
        for number in range(10):
            await attacker.call(shop, "echo", number)
            await attacker.answer(shop)
        gate.set()
        assert (await attacker.answer(shop))[0][2:4] == [call_id, VALUE]
        body = encode([[CALL, 1, call_id, "long", encode([[], {}]), "msgpack"]])
        await attacker.publish(body, work, shop)
        assert (await attacker.answer(shop))[0][2:5] == [call_id, VALUE, encode("hers")]
        await attacker.publish(body, work, keys.key("thief"))
        assert (await attacker.answer(keys.key("thief")))[0][2:4] == [call_id, DECODE_ERROR]
        assert refused(site.worker.transport) == {"not allowed": 1}


async def test_messages_whose_calls_are_all_refused_take_no_memory(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    async with site.open():
        for _ in range(10):
            await attacker.call(keys.key("thief"), "secret")
            assert (await attacker.answer(keys.key("thief")))[0][3] == DECODE_ERROR
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        assert transport.session.seals is not None
        assert len(transport.session.seals._admitted) == 0


async def test_nobody_else_cancels_a_call_before_it_comes(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        every, work = f"queue:{site.namespace}:default", attacker.peer.work_queue()
        for key in other_keys(keys).values():
            await attacker.say(key, [CANCEL, 1, ["an-id"]], every)
        await until(lambda: sum(refused(site.worker.transport).values()) == 3)
        await attacker.publish(echo_body, work, keys.key("shop"))
        ((_, _, call_id, status, *_),) = await attacker.answer(keys.key("shop"))
        assert (call_id, status) == ("an-id", VALUE)
        body = echo_body.replace(b"an-id", b"so-id")
        sent = time.time()
        await attacker.say(keys.key("shop"), [CANCEL, 1, ["so-id"]], every, issued=sent)
        await attacker.say(keys.key("shop"), [ASK, 1, []], every)
        assert (await attacker.answer(keys.key("shop")))[0][0] == HELD  # it has seen the Cancel
        await attacker.publish(body, work, keys.key("shop"), issued=sent - 1)
        await attacker.publish(body, work, keys.key("shop"), issued=sent + 1)
        ((_, _, call_id, status, *_),) = await attacker.answer(keys.key("shop"))
        assert (call_id, status) == ("so-id", VALUE)
        assert ran(site) == [1, 1]
        assert attacker.peer.unread.empty()


async def test_nobody_else_answers_a_call(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        task, call_id = await running(site)
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        reply = encode([[REPLY, 1, call_id, VALUE, encode(None), "msgpack"]])
        others = [
            [ITEM, 1, call_id, 0, [encode(1)], "msgpack", "w2"],
            [END, 1, call_id, 0, [REPLY, 1, call_id, VALUE, b""]],
            [HELD, 1, [call_id], "w2"],
            [CLAIM, 1, call_id, 2, "copy", "w2"],
        ]
        sealed = 0
        for key in (*other_keys(keys).values(), keys.key("w")):
            for body in (reply, *(encode([other]) for other in others)):
                await attacker.publish(body, transport.session.reply_queue, key, "reply")
                sealed += key is not None
        # what was sealed for another caller's queue, or as another kind of message
        shop = keys.key("shop")
        await attacker.publish(reply, transport.session.reply_queue, shop, "reply", destination="another")
        await attacker.publish(reply, transport.session.reply_queue, shop, "request")
        await until(lambda: sum(refused(transport).values()) == 5 + sealed + 2)
        assert refused(transport) == {"unsealed": 5, "unknown key": 20, "wrong seal": 2}
        assert not task.done()
        pending = transport.session.pendings.get(call_id)
        assert pending is not None
        assert pending.asked == 0
        assert "copy" not in (pending.copies or {}).values()
        await attacker.publish(reply, transport.session.reply_queue, shop, "reply", reply_to="", message_id="m")
        await soon(task)  # whoever has the key can
        site.worker.cancel(call_id)


async def test_nobody_else_answers_a_worker_that_awaits_a_call(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    """A worker knows the keys of all callers, and takes answers under its own only."""

    @site.atask(name="outer")
    async def outer() -> Any:
        await task_of(site, "forever")()

    async with site.open():
        task = asyncio.create_task(task_of(site, "outer")())
        await until(lambda: "forever" in ran(site))
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        (inner,) = [pending.call.id for pending in transport.session.pendings.values()]
        reply = encode([[REPLY, 1, inner, VALUE, encode("forged"), "msgpack"]])
        for name in ("thief", "shop"):
            await attacker.publish(reply, transport.session.reply_queue, keys.key(name), "reply")
        # a record's news answer nothing either
        record = f"{attacker.peer.prefix}.run.{site.namespace}.an-id"
        channel = attacker.peer.channel
        queue = await channel.get_queue(transport.session.reply_queue, ensure=False)
        await queue.bind(attacker.control, record)
        await attacker.publish(
            reply, record, keys.key("thief"), "record", exchange=attacker.control, destination=record
        )
        await until(lambda: refused(transport).get("not allowed") == 2)
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: site.worker.held == 0)


async def test_nobody_else_answers_the_steps_of_a_call_that_resumes(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    """Neither at its lock, nor in its journal, nor by a copy of another message for the lock."""

    @site.atask(name="outer", resume=True)
    async def outer() -> Any:
        return await task_of(site, "forever")()

    async with site.open():
        task = asyncio.create_task(task_of(site, "outer")())
        await until(lambda: "forever" in ran(site))
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        ((inner, pending),) = transport.session.pendings.items()
        lock = pending.address
        journal = f"{attacker.peer.prefix}.run.{site.namespace}.{transport.session.topology.journal(lock)}"
        reply = encode([[REPLY, 1, inner, VALUE, encode("forged"), "msgpack"]])
        before = sum(refused(transport).values())
        for name in ("thief", "shop"):
            for to, kind, place in (
                (lock, "reply", lock),
                (journal, "record", journal),
                (lock, "record", journal),
            ):
                await attacker.publish(
                    reply, to, keys.key(name), kind, destination=place, copies=[] if to == lock else [lock]
                )
        elsewhere = attacker.peer.replies.name
        await attacker.publish(reply, elsewhere, keys.key("shop"), "reply", destination=lock, copies=[lock])
        await until(lambda: sum(refused(transport).values()) >= before + 5)
        await asyncio.sleep(0.1)
        assert not task.done()
        assert inner in transport.session.pendings
        (step,) = (run.call.id for run in site.worker.runs if run.call.task == "forever")
        assert step == inner
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: site.worker.held == 0)


async def test_nobody_else_writes_into_a_record(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    """Neither its coordinator nor its submitter takes a result from anybody who has not the submitter's key."""
    gate = asyncio.Event()

    @site.atask(name="gated")
    async def gated(value: int) -> int:
        await gate.wait()
        return value

    async with site.open():
        handle = await (map(gated) | map(gated)).submit(5)
        await until(lambda: len(site.worker.runs) == 2)
        record = f"{attacker.peer.prefix}.run.{site.namespace}.{handle.id}"
        step = encode({"attempt": 1, "one": True, "items": [6]})
        forged_replies = [
            encode([[REPLY, 1, handle.id, VALUE, encode(6), "msgpack"]]),
            encode([[REPLY, 1, handle.task_ids[0], VALUE, step, "msgpack"]]),
        ]
        for key in other_keys(keys).values():
            for body in forged_replies:
                await attacker.publish(body, record, key, "record")
                await attacker.publish(body, record, key, "record", exchange=attacker.control, destination=record)
        gate.set()
        assert await soon(handle) == 5
        transport = site.caller
        assert transport.records is not None
        read = await transport.records.read(handle.id)
        assert [reply.worker for reply in read.replies.values()] == [site.worker.id] * len(read.replies)


async def test_nobody_else_has_a_failed_call_run_again(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    """A call that another key has put into the record takes nobody's place; that of its owner does."""

    @site.atask(name="picky")
    async def picky(value: int) -> int:
        if current_call().try_ == 1:
            raise KeyError(value)
        return value

    async with site.open():
        handle = await soon(picky.submit(5))
        with pytest.raises(KeyError):
            await soon(handle)
        record = f"{attacker.peer.prefix}.run.{site.namespace}.{handle.id}"
        forged = encode([[CALL, 1, again_id(handle.id), "internal.pay", encode([[5], {}]), "msgpack"]])
        for key in other_keys(keys).values():
            await attacker.publish(forged, record, key, "record")
        records = site.caller.records
        assert records is not None
        assert (await soon(records.read(handle.id))).call.id == handle.id
        with pytest.raises(KeyError):
            await soon(handle)
        await soon(handle.retry())
        assert await soon(handle) == 5
