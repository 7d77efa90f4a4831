"""Sealed messages over a broker: what a stranger, a caller and a worker can do to the calls of another caller."""

# Private attributes: `Attempts._claims`: nobody else knows that no question is open.

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractIncomingMessage

import atasks
from atasks import DecodeError, InvalidKeys, MsgpackCodec, Transport, current_call
from atasks.pipeline import map
from atasks.signing import CONTENT_TYPE, Key, Kind, keyfile, parse, seal, verify
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport, seals
from atasks.transport.backends.amqp.caller import presence, probe
from atasks.transport.records.contract import again_id
from tests.amqp.peer import Peer
from tests.keys import KeyFiles, caller_first

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode

CALL, REPLY, CANCEL, ASK, HELD, UP, CREDIT, ITEM, END, KEPT, CLAIM, GRANT = range(1, 13)
VALUE, DECODE_ERROR = 0, 7


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    """The caller of the site is `shop`; `thief` is another one, whom the workers know too."""
    return KeyFiles(tmp_path, shop="", thief="tasks=echo,count queues=default max_attempts=2")


@pytest.fixture
def site(amqp_url: str, prefix: str, amqp_leaks: None, keys: KeyFiles) -> Iterator[Site]:
    """A caller with the key `shop`, workers, and atasks that data made by hand can call."""
    site = Site(caller_first(amqp_url, prefix, keys, "shop"))
    MsgpackCodec(site.namespace)
    ran: list[Any] = []
    site.ran = ran  # type: ignore[attr-defined]

    @site.atask(name="echo")
    async def echo(value: Any = None) -> Any:
        ran.append(value)
        return value

    @site.atask(name="secret")
    async def secret() -> str:
        ran.append("secret")
        return "secret"

    @site.atask(name="forever")
    async def forever() -> None:
        ran.append("forever")
        await asyncio.Event().wait()

    @site.atask(name="count")
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    yield site
    site.close()


def ran(site: Site) -> list[Any]:
    """The notes of the site's atasks."""
    found: list[Any] = site.ran  # type: ignore[attr-defined]
    return found


class Attacker:
    """A peer that can seal, with whatever key it is given."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    @property
    def control(self) -> str:
        return f"{self.peer.prefix}.control"

    async def publish(
        self,
        body: bytes,
        to: str,
        key: Key | None,
        kind: Kind = "request",
        *,
        exchange: str = "",
        destination: str | None = None,
        reply_to: str | None = None,
        message_id: str | None = None,
        issued: float | None = None,
    ) -> aio_pika.Message:
        """Send a body to a queue or a routing key, under the seal of a key; None: without one."""
        message_id = message_id or uuid.uuid4().hex
        reply_to = self.peer.replies.name if reply_to is None else reply_to
        place = destination or (f"{exchange} {to}" if exchange else to)
        at = int((time.time() if issued is None else issued) * 1000)
        if key is not None:
            body = seal(key, body, at, kind, place, reply_to, message_id)
        content_type = "application/vnd.atasks.v1+msgpack" if key is None else CONTENT_TYPE
        message = aio_pika.Message(body, content_type=content_type, reply_to=reply_to, message_id=message_id)
        await self.publish_again(message, to, exchange)
        return message

    async def publish_again(self, message: aio_pika.Message, to: str, exchange: str = "") -> None:
        """Send a message as it was recorded."""
        channel = self.peer.channel
        target = await channel.get_exchange(exchange) if exchange else channel.default_exchange
        await target.publish(message, to, mandatory=False)

    async def call(self, key: Key | None, task: str, *args: Any, fields: tuple[Any, ...] = (), **how: Any) -> str:
        """Send a request to the default queue; its id."""
        call_id = uuid.uuid4().hex
        body = encode([[CALL, 1, call_id, task, encode([list(args), {}]), "msgpack", *fields]])
        await self.publish(body, self.peer.work_queue(), key, **how)
        return call_id

    async def say(self, key: Key | None, envelope: list[Any], to: str, **how: Any) -> None:
        """Send a control message."""
        await self.publish(encode([envelope]), to, key, "control", exchange=self.control, **how)

    async def answer(self, key: Key) -> list[Any]:
        """The next envelopes for this peer, which have to be sealed with that key."""
        message = await soon(self.peer.unread.get())
        assert message.content_type == CONTENT_TYPE
        place = self.peer.replies.name
        covered = message.reply_to or "", message.message_id or ""
        found: list[Any] = decode(verify(key, parse(message.body), "reply", place, *covered))
        return found


@pytest.fixture
async def attacker(amqp_url: str, prefix: str, site: Site) -> AsyncIterator[Attacker]:
    async with Peer.connect(amqp_url, prefix, site.namespace) as peer:
        yield Attacker(peer)


def fields(by: str = "", attempt: int = 1, max_attempts: int = 3, delivery: int = 0) -> tuple[Any, ...]:
    """Those of a Call behind its codec, down to `by`."""
    return (None, 0, attempt, max_attempts, delivery, 0, None, None, None, 0, None, None, False, by)


def refused(transport: Transport) -> dict[str, int]:
    assert isinstance(transport, AMQPTransport)
    assert transport.session.seals is not None
    return dict(transport.session.seals.refused)


def forged(name: str) -> Key:
    """A key of a name that is known, with a secret that is not."""
    return keyfile.parse(keyfile.new_line(name, "serve"), name)[0]


echo_body = encode([[CALL, 1, "an-id", "echo", encode([[1], {}]), "msgpack"]])


# --- a stranger


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


def _task(site: Site, name: str) -> Any:
    item = site.router.registry.get(name)
    assert item is not None
    return item.task


async def call(site: Site, name: str, *args: Any, **options: Any) -> Any:
    """Await an atask of the site."""
    return await soon(_task(site, name).options(**options)(*args))


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
        message = await _get(queue)
        first, second = await site.serve(queues=["default"]), await site.serve(queues=["other"])
        again = _copy(message)
        await attacker.publish_again(again, attacker.peer.work_queue())
        assert await soon(task) == "once"
        await first.drain()
        third = await site.serve(queues=["default"])
        for _ in range(3):
            await attacker.publish_again(_copy(message), attacker.peer.work_queue())
        await until(lambda: refused(third.transport).get("replayed") == 2)
        await until(lambda: not third.transport.serving.attempts._claims)  # type: ignore[attr-defined]
        assert ran(site) == ["once"]
        assert second.started == 0


def arguments_of(site: Site) -> dict[str, Any]:
    transport = site.caller
    assert isinstance(transport, AMQPTransport)
    return transport.session.topology.work_arguments()


async def _get(queue: Any) -> AbstractIncomingMessage:
    async with asyncio.timeout(10):
        while (message := await queue.get(no_ack=True, fail=False)) is None:
            await asyncio.sleep(0.02)
    found: AbstractIncomingMessage = message
    return found


def _copy(message: AbstractIncomingMessage) -> aio_pika.Message:
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


async def _running(site: Site) -> tuple[asyncio.Task[Any], str]:
    """A call of the site's caller that runs, and its id."""
    task = asyncio.create_task(_task(site, "forever")())
    await until(lambda: "forever" in ran(site))
    return task, site.worker.runs[0].call.id


def _keys(keys: KeyFiles) -> dict[str, Key | None]:
    """The keys of processes that are neither the call's owner nor a worker."""
    return {"none": None, "stranger": forged("stranger"), "forged": forged("w"), "thief": keys.key("thief")}


async def test_nobody_else_cancels_asks_for_or_takes_over_a_call(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    async with site.open():
        call_id = await attacker.call(keys.key("shop"), "forever")
        finished = await attacker.call(keys.key("shop"), "echo", "hers")
        assert (await attacker.answer(keys.key("shop")))[0][2] == finished
        every, worker = f"queue:{site.namespace}:default", f"worker:{site.worker.id}"
        for key in _keys(keys).values():
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


async def test_nobody_else_cancels_a_call_before_it_comes(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        every, work = f"queue:{site.namespace}:default", attacker.peer.work_queue()
        for key in _keys(keys).values():
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
        task, call_id = await _running(site)
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
        for key in (*_keys(keys).values(), keys.key("w")):
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
        await _task(site, "forever")()

    async with site.open():
        task = asyncio.create_task(_task(site, "outer")())
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


async def test_anybody_may_announce_a_worker_and_gains_little(
    site: Site, attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Up` has no seal. It makes a caller ask for its calls, once a second at most."""
    monkeypatch.setattr(presence, "DEAF_SECONDS", 0.3)
    async with site.open():
        task, _ = await _running(site)
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        suspected: list[Any] = []
        monkeypatch.setattr(transport.calling.overdue, "suspect", suspected.append)
        key = f"up:{site.namespace}:default"
        await until(lambda: "default" in transport.calling.presence.listening)
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


# --- a caller


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


async def test_attempts_are_capped_by_the_key(site: Site, attacker: Attacker, keys: KeyFiles) -> None:
    async with site.open():
        await attacker.call(keys.key("thief"), "count", 10**6, fields=(*fields(max_attempts=10**6)[:9], 1))
        await until(lambda: site.worker.runs)
        assert site.worker.runs[0].call.max_attempts == 2
        site.worker.cancel(site.worker.runs[0].call.id)
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
        for key in _keys(keys).values():
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
        for key in _keys(keys).values():
            await attacker.publish(forged, record, key, "record")
        records = site.caller.records
        assert records is not None
        assert (await soon(records.read(handle.id))).call.id == handle.id
        with pytest.raises(KeyError):
            await soon(handle)
        await soon(handle.retry())
        assert await soon(handle) == 5


# --- what goes wrong honestly


async def test_a_wrong_file_is_noticed(
    amqp_url: str, prefix: str, keys: KeyFiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    namespace = f"case-{uuid.uuid4().hex}"
    options: dict[str, Any] = {"namespace": namespace, "prefix": prefix}
    async with atasks.serve(amqp_url, keys=keys.worker, **options):
        async with atasks.connect(amqp_url, keys=keys.caller("thief"), **options) as transport:
            assert isinstance(transport, AMQPTransport)
            assert transport.calling.prober is not None
            await soon(transport.calling.prober)
        assert "has answered the key" not in caplog.text
        async with atasks.connect(amqp_url, keys=keys.stranger, **options) as transport:
            assert isinstance(transport, AMQPTransport)
            assert transport.calling.prober is not None
            await soon(transport.calling.prober)
        assert f"has answered the key 'stranger' of {keys.stranger}" in caplog.text


async def test_a_worker_needs_a_worker_s_key(amqp_url: str, prefix: str, keys: KeyFiles) -> None:
    with pytest.raises(InvalidKeys, match=r"key 'shop', .* may only call: .* the word serve"):
        async with atasks.serve(amqp_url, prefix=prefix, keys=keys.caller("shop")):
            pass
    with pytest.raises(ValueError, match="unsealed='maybe': 'refuse' or 'accept'"):
        async with atasks.serve(amqp_url, prefix=prefix, keys=keys.worker, unsealed="maybe"):  # type: ignore[arg-type]
            pass


async def test_keys_are_found_by_the_environment_and_can_be_left_out(
    amqp_url: str, prefix: str, keys: KeyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATASKS_KEYS", str(keys.caller("shop")))
    transport = AMQPTransport(amqp_url, "case-env", prefix=prefix)
    assert transport.session.seals is not None
    assert transport.session.seals.keys.own.name == "shop"
    assert AMQPTransport(amqp_url, "case-env", prefix=prefix, keys="").session.seals is None
    monkeypatch.setenv("ATASKS_KEYS", str(keys.folder / "no.keys"))
    with pytest.raises(InvalidKeys, match="No such file"):
        AMQPTransport(amqp_url, "case-env", prefix=prefix)
    async with atasks.connect("loopback:", namespace="case-env", keys="no.keys", unsealed="accept"):
        pass
    monkeypatch.delenv("ATASKS_KEYS")
    assert AMQPTransport(amqp_url, "case-env", prefix=prefix).session.seals is None


def look() -> str:
    """The memory and the environment of a process that runs functions for a worker, as far as they are texts."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = b""
    with open("/proc/self/mem", "rb") as memory:
        for area, rights, *_, name in maps:
            if rights.startswith("rw") and not name.startswith("["):
                start, end = (int(part, 16) for part in area.split("-"))
                memory.seek(start)
                found += memory.read(end - start)
    texts = re.findall(rb"[\w-]{43}", found)
    started = [Path(f"/proc/self/{name}").read_text() for name in ("environ", "cmdline")]
    return f"{sorted(set(texts))} {started}"


async def test_secrets_show_nowhere(site: Site, keys: KeyFiles, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "atasks")
    secrets = [line.split()[1] for line in (keys.own, *keys.lines.values())]

    site.atask(name="look", executor="process")(look)
    async with site.open():
        found = await call(site, "look")
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        shown = repr(
            [
                transport.session.seals
                and (transport.session.seals.keys, transport.session.seals.keys.own, vars(transport.session.seals))
            ]
        )
    for secret in (*secrets, *(repr(keys.key(name).secret) for name in ("w", "shop"))):
        for text in (found, shown, caplog.text):
            assert secret not in text


async def test_lost_refusals_are_counted_once_a_minute(
    site: Site, attacker: Attacker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "REPORT_SECONDS", 0.3)
    async with site.open():
        dead = await attacker.peer.dead_letters()

        async def flood(number: int) -> None:
            for _ in range(number):
                await attacker.call(None, "echo")
            for _ in range(number):
                await soon(dead.get())

        await flood(20)
        await asyncio.sleep(0.4)
        await flood(1)
        lines = [record.getMessage() for record in caplog.records if record.name == "atasks.keys"]
        assert len(lines) == 2
        assert "refused: 1 unsealed;" in lines[0]
        assert "refused: 20 unsealed;" in lines[1]


async def test_a_call_that_kills_its_caller_s_reply_queue_goes_on_counting(
    site: Site, attacker: Attacker, keys: KeyFiles
) -> None:
    """A caller may not say which attempt it is, so it begins anew with the attempts that are left."""
    async with site.open():
        task, call_id = await _running(site)
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
