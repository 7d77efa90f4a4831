"""Messages from elsewhere: nothing that is written to a queue stops anyone, or costs a good call."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from typing import Any

import msgspec
import pytest
from aio_pika.abc import AbstractIncomingMessage

from atasks import CallError, MsgpackCodec
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp.worker.dead_letters import MAX_BODY
from tests.amqp.peer import Peer
from tests.busy import calm

encode = msgspec.msgpack.encode

CALL, REPLY, CANCEL, ASK, HELD, UP = range(1, 7)
VALUE, RAISED, DECODE_ERROR = 0, 1, 7
NO_ARGUMENTS = encode([[], {}])


def call(id: str, task: str = "echo", *, v: int = 1, arguments: tuple[Any, ...] = ()) -> list[Any]:
    return [CALL, v, id, task, encode([list(arguments), {}]), "msgpack"]


@pytest.fixture
def echo_site(site: Site) -> Site:
    """A site with an atask named echo, which data made by hand can call."""
    MsgpackCodec(site.namespace)

    @site.atask(name="echo")
    async def echo(value: Any = None) -> Any:
        return value

    return site


UNANSWERABLE = {
    "empty": b"",
    "random": bytes(random.Random(1).randrange(256) for _ in range(500)),
    "text": b'{"task": "echo"}',
    "truncated": encode([call("an-id")])[:-5],
    "not-an-array": encode({"task": "echo"}),
    "a-number": encode(7),
    "array-of-numbers": encode([1, 2, 3]),
    "array-of-nil": encode([None]),
    "no-envelopes": encode([]),
    "no-id": encode([[CALL, 1]]),
    "id-too-long": encode([call("x" * 65)]),
    "id-of-another-type": encode([[CALL, 1, 5, "echo", NO_ARGUMENTS, "msgpack"]]),
    "id-not-utf-8": encode([call("an-id")]).replace(b"an-id", b"an-\xff\xff"),
    "unknown-kind": encode([[99, 1]]),
    "reply": encode([[REPLY, 1, "an-id", VALUE, b"", "msgpack"]]),
    "cancel": encode([[CANCEL, 1, ["an-id"]]]),
    "nested-deep": b"\x91" * 100_000 + b"\xc0",
    "trailing-bytes": encode([call("an-id")]) + b"\x00",
    "length-that-lies": b"\xdd\xff\xff\xff\xff",
    "bytes-that-lie": b"\x91\x96\x01\x01\xa1a\xa1b\xc6\xff\xff\xff\xff",
    "large": bytes(8 * 2**20),
}


async def test_message_that_cannot_be_answered_is_dead_lettered(echo_site: Site, peer: Peer) -> None:
    async with echo_site.open():
        dead = await peer.dead_letters()
        for name, body in UNANSWERABLE.items():
            counted = echo_site.worker.bad_messages
            await peer.publish(body)
            assert (await soon(dead.get())).body == body[:MAX_BODY], name
            assert echo_site.worker.bad_messages > counted, name
            assert await _echo(echo_site, name) == name


DEATHS: list[Any] = [
    [1],
    ["text"],
    [None, {}],
    {"count": 1},
    "text",
    [{"count": "x"}],
    [{"queue": 1, "reason": []}],
]


async def test_a_message_that_says_oddly_how_it_died_costs_no_queue(echo_site: Site, peer: Peer) -> None:
    """RabbitMQ 3.10 loses the queue, and with it the consumers, where it has to add to such a header itself."""
    async with echo_site.open(serve=False):
        await echo_site.serve()
        dead = await peer.dead_letters()
        link = echo_site.worker.transport.session.link  # type: ignore[attr-defined]
        for queue in (peer.work_queue(), f"{peer.work_queue()}.solo"):
            for died in DEATHS:
                await peer.publish(b"unreadable", queue, headers={"x-death": died})
                letter = await soon(dead.get())
                assert letter.body == b"unreadable"
                assert letter.headers == {"x-first-death-queue": queue, "x-first-death-reason": "rejected"}
                await peer.send(call("an-id", arguments=(5,)))
                assert (await peer.answer())[0][4] == encode(5)
        assert echo_site.worker.transport.session.link is link  # type: ignore[attr-defined]


async def test_request_without_reply_address_is_dead_lettered(echo_site: Site, peer: Peer) -> None:
    async with echo_site.open():
        dead = await peer.dead_letters()
        await peer.send(call("an-id"), reply_to=None)
        assert (await soon(dead.get())).body == encode([call("an-id")])
        assert echo_site.worker.bad_messages == 1
        assert await _echo(echo_site, 1) == 1


DIRECT = "amq.rabbitmq.reply-to"
NO_ADDRESSES = tuple(
    DIRECT + rest for rest in (".g2gCZA==.x", f".{'g2' * 100}", ".g1h2AA==", ".\N{SNOWMAN}", ".", "-")
)


async def test_an_address_over_which_the_broker_closes_the_connection_is_none(echo_site: Site, peer: Peer) -> None:
    """RabbitMQ takes what begins so for Erlang terms, and the channel that publishes there crashes, and with it
    the connection. The answer would be sent again over the next one."""
    async with echo_site.open():
        dead = await peer.dead_letters()
        link = echo_site.worker.transport.session.link  # type: ignore[attr-defined]
        body = encode([call("an-id")])
        doubtful = encode([[*call("an-id"), None, 0, 3, 3]])  # whether its caller is there is asked of the broker
        for address in NO_ADDRESSES:
            for queue in (peer.work_queue(), f"{peer.work_queue()}.solo"):
                for request in (body, doubtful, encode([call("an-id", v=2)])):
                    counted = echo_site.worker.bad_messages
                    await peer.publish(request, queue, reply_to=address)
                    assert (await soon(dead.get())).body == request
                    assert echo_site.worker.bad_messages == counted + 1
            for question in ([ASK, 1, []], [ASK, 1, ["an-id"], "a-token"]):
                await peer.control(encode([question]), f"queue:{peer.namespace}:default", reply_to=address)
            ping = [20, 1, "a-token", encode({"type": "ping"})]
            await peer.control(encode([ping]), f"all:{peer.namespace}", reply_to=address)
            assert await _echo(echo_site, address) == address
        assert echo_site.worker.transport.session.link is link  # type: ignore[attr-defined]
        assert not link.lost.done()


ANSWERABLE = {
    "newer-version": (call("an-id", v=2), r"version 2.*version 1"),
    "version-zero": (call("an-id", v=0), r"version 0.*version 1"),
    "too-few-fields": ([CALL, 1, "an-id", "echo"], r"length"),
    "task-of-another-type": ([CALL, 1, "an-id", 5, NO_ARGUMENTS, "msgpack"], r"Expected `str`"),
    "task-not-utf-8": (encode([call("an-id")]).replace(b"echo", b"ech\xff"), r"not UTF-8"),
    "no-task-name": (call("an-id", ""), r"length >= 1"),
    "arguments-of-another-type": ([CALL, 1, "an-id", "echo", 5, "msgpack"], r"Expected `bytes`"),
    "negative-timeout": ([*call("an-id"), -1], r"Expected `int` >= 0"),
    "attempt-zero": ([*call("an-id"), None, 0, 0], r"Expected `int` >= 1"),
    "unknown-delivery": ([*call("an-id"), None, 0, 1, 3, 9], r"Expected `int` <= 1"),
}


async def test_request_that_cannot_be_read_is_answered(echo_site: Site, peer: Peer) -> None:
    async with echo_site.open():
        for name, (envelope, reason) in ANSWERABLE.items():
            counted = echo_site.worker.bad_messages
            await peer.publish(envelope if isinstance(envelope, bytes) else encode([envelope]))
            ((tag, version, call_id, status, payload, *_),) = await peer.answer()
            assert (tag, version, call_id, status) == (REPLY, 1, "an-id", DECODE_ERROR), name
            message, *_ = msgspec.msgpack.decode(payload)
            assert _matches(reason, message), (name, message)
            assert echo_site.worker.bad_messages == counted + 1, name
            assert await _echo(echo_site, name) == name


@pytest.mark.usefixtures("whoever_reads_frames")
async def test_wrong_content_type_is_answered(echo_site: Site, peer: Peer) -> None:
    async with echo_site.open():
        for content_type in ("application/json", None, "application/vnd.atasks.v2+msgpack"):
            await peer.send(call("an-id"), content_type=content_type)
            ((tag, _, call_id, status, payload, *_),) = await peer.answer()
            assert (tag, call_id, status) == (REPLY, "an-id", DECODE_ERROR)
            assert repr(content_type) in msgspec.msgpack.decode(payload)[0]
        assert echo_site.worker.bad_messages == 3
        assert await _echo(echo_site, 1) == 1


UNFIT = {
    "empty": b"",
    "not-msgpack": b"\xc1",
    "number": encode(5),
    "three": encode([1, 2, 3]),
    "no-names": encode([[], []]),
    "too-many": encode([[1, 2], {}]),
    "unknown-name": encode([[], {"no": 1}]),
    "not-utf-8": encode([["text"], {}]).replace(b"text", b"tex\xff"),
}


async def test_arguments_that_do_not_fit_are_answered(echo_site: Site, peer: Peer) -> None:
    async with echo_site.open():
        for name, arguments in UNFIT.items():
            await peer.send([CALL, 1, name, "echo", arguments, "msgpack"])
            ((tag, _, call_id, status, *_),) = await peer.answer()
            assert (tag, call_id) == (REPLY, name)
            assert status == (RAISED if name in ("too-many", "unknown-name") else DECODE_ERROR), name
            assert await _echo(echo_site, name) == name


@pytest.mark.usefixtures("whoever_reads_frames")
async def test_bad_envelopes_cost_the_others_of_their_message_nothing(echo_site: Site, peer: Peer) -> None:
    async with echo_site.open():
        await peer.send(
            call("first", arguments=(1,)),
            call("newer", v=2),
            [CANCEL, 1, ["another"]],
            [99, "what"],
            call("last", arguments=(2,)),
        )
        answers = {envelope[2]: envelope for envelope in await peer.answers(3)}
        assert {key: answer[3] for key, answer in answers.items()} == {
            "first": VALUE,
            "newer": DECODE_ERROR,
            "last": VALUE,
        }
        assert [msgspec.msgpack.decode(answers[key][4]) for key in ("first", "last")] == [1, 2]
        assert echo_site.worker.bad_messages >= 1
        await until(lambda: echo_site.worker.held == 0)
    ready = await peer.channel.declare_queue(peer.work_queue(), passive=True)
    assert ready.declaration_result.message_count == 0


async def test_bad_messages_are_logged_once(echo_site: Site, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "atasks")
    async with echo_site.open():
        dead = await peer.dead_letters()
        for number in range(5):
            await peer.publish(b"secret%d" % number)
        for _ in range(5):
            await soon(dead.get())
        assert echo_site.worker.bad_messages == 5
    lines = [record.getMessage() for record in calm(caplog.records) if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "bad message" in lines[0]
    assert "secret" not in lines[0]


@pytest.mark.usefixtures("whoever_reads_frames")
async def test_fuzz(echo_site: Site, peer: Peer) -> None:
    """Whatever is in a message, it is answered or dead-lettered, once."""
    source = random.Random(20)
    good = encode(
        [[*call("an-id", arguments=("abc", 1)), None, 0, 1, 3, 0, 0, "root", "parent", ["seen"], 0, None]]
    )
    bodies = [_damage(source, good) for _ in range(400)] + [
        source.randbytes(source.randrange(60)) for _ in range(100)
    ]
    async with echo_site.open(concurrency=20):
        dead = await peer.dead_letters()
        for body in bodies:
            await peer.publish(body)
        answered = 0
        async with asyncio.timeout(60):
            while answered + dead.qsize() < len(bodies):
                try:
                    async with asyncio.timeout(0.2):
                        answered += len(await peer.answer())
                except TimeoutError:
                    continue
        assert await _echo(echo_site, 1) == 1
        await echo_site.check_quiet()
        assert (answered + dead.qsize(), peer.unread.qsize()) == (len(bodies), 0)
        assert answered
        assert dead.qsize()
    ready = await peer.channel.declare_queue(peer.work_queue(), passive=True)
    assert ready.declaration_result.message_count == 0


def _damage(source: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(source.randrange(1, 4)):
        if not damaged:
            break
        match source.randrange(3):
            case 0:
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            case 1:
                damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
            case _:
                del damaged[source.randrange(len(damaged)) :]
    return bytes(damaged)


@pytest.mark.usefixtures("whoever_reads_frames")
async def test_garbage_on_the_reply_queue(echo_site: Site, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "atasks")
    requests = await peer.declare_work_queue("by-hand")
    async with echo_site.open():
        waiting = asyncio.create_task(_echo(echo_site, 1, queue="by-hand"))
        request = await soon(requests.get())
        stray = [REPLY, 1, "nobody-awaits-this", VALUE, b"", "msgpack"]
        for body in (
            b"",
            b"secret",
            encode([1]),
            encode([call("an-id")]),
            encode([stray]),
            encode([[REPLY, 2, "x"]]),
        ):
            await peer.publish(body, request.reply_to)
        await peer.send(_reply_to(request, VALUE, encode("by hand"), "msgpack"), queue=request.reply_to)
        assert await soon(waiting) == "by hand"
        assert await _echo(echo_site, 2) == 2
    lines = [record.getMessage() for record in calm(caplog.records) if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "bad message" in lines[0]
    assert "secret" not in lines[0]


async def test_reply_beside_garbage_arrives(echo_site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")
    async with echo_site.open(serve=False):
        waiting = asyncio.create_task(_echo(echo_site, 1))
        request = await soon(requests.get())
        reply = _reply_to(request, VALUE, encode("by hand"), "msgpack")
        await peer.send([99], reply, ["?"], queue=request.reply_to)
        assert await soon(waiting) == "by hand"


SENSELESS = {
    "value": [VALUE, b"\xc1", "msgpack"],
    "codec": [VALUE, encode(1), "another codec"],
    "failure": [RAISED, b"not a failure", "msgpack"],
    "failure-codec": [RAISED, b"not a failure", "another codec"],
    "not-utf-8": [RAISED, encode([[[0, "m", "C\u00e9", "message"]]]).replace(b"\xc3\xa9", b"\xff\xff"), "msgpack"],
    "ending": [5, b"not an ending", ""],
    "status": [1000, encode(["message", 0]), ""],
}


async def test_reply_that_makes_no_sense_ends_the_await(echo_site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")
    async with echo_site.open(serve=False):
        for name, reply in SENSELESS.items():
            waiting = asyncio.create_task(_echo(echo_site, name))
            request = await soon(requests.get())
            await peer.send(_reply_to(request, *reply), queue=request.reply_to)
            with pytest.raises(CallError):
                await soon(waiting)


@pytest.mark.usefixtures("whoever_reads_frames")
async def test_garbage_on_the_control_exchange(echo_site: Site, peer: Peer) -> None:
    started = asyncio.Event()

    @echo_site.atask(name="forever")
    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    async with echo_site.open():
        worker = echo_site.worker
        for key in (f"worker:{worker.id}", f"queue:{echo_site.namespace}:default"):
            before = worker.bad_messages
            for body in (b"", b"\xff" * 100, encode([1]), encode([[CANCEL, 2, ["an-id"]]])):
                await peer.control(body, key)
            await until(lambda: worker.bad_messages == before + 4)  # noqa: B023  # it returns within this round
            for envelope in (
                call("an-id"),
                [ASK, 1, ["an-id"]],
                [HELD, 1, ["an-id"], "a worker"],
                [UP, 1, "n", "q", "w"],
            ):
                await peer.control(encode([envelope]), key)
            started.clear()
            await peer.send(call(f"by-hand {key}"[:64], "forever"))
            await soon(started.wait())
            await peer.control(encode([[99], [CANCEL, 1, [f"by-hand {key}"[:64]]]]), key)
            await until(lambda: worker.held == 0)
        assert await _echo(echo_site, 1) == 1


async def _echo(site: Site, value: Any, **options: Any) -> Any:
    item = site.router.registry.get("echo")
    assert item is not None
    return await soon(item.task.options(**options)(value))


def _reply_to(request: AbstractIncomingMessage, *fields: Any) -> list[Any]:
    """A reply envelope for the call in a request."""
    ((_, _, call_id, *_),) = msgspec.msgpack.decode(request.body)
    return [REPLY, 1, call_id, *fields]


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.DOTALL) is not None
