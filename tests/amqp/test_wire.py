"""Wire v1: a peer that knows nothing but the format can call, and can serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiormq.abc import DeliveredMessage

from atasks import CallCancelled, CallTimeout, MsgpackCodec, UnknownTask, WorkerLost, current_call
from atasks.testing import PATIENCE, Site, soon, until
from atasks.transport.backends.amqp.broker.link import ConsumerCallback, Link
from tests.amqp.peer import CONTENT_TYPE, Peer

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode

CALL, REPLY, CANCEL, ASK, HELD, UP, CREDIT, ITEM, END, KEPT, CLAIM, GRANT = range(1, 13)
VALUE, RAISED, CANCELLED, TIMED_OUT, UNKNOWN, LOST, ENCODE_ERROR, DECODE_ERROR, TOO_LARGE, FAILED = range(10)


@pytest.fixture
def plain_site(site: Site) -> Site:
    """A site whose atasks take and give plain MessagePack."""
    MsgpackCodec(site.namespace)

    @site.atask(name="add")
    async def add(a: int, b: int = 10) -> int:
        return a + b

    @site.atask(name="fail")
    async def fail() -> None:
        raise ValueError("text", 7)

    @site.atask(name="leave")
    async def leave() -> None:
        raise asyncio.CancelledError

    @site.atask(name="lock")
    async def lock() -> Any:
        return object()

    @site.atask(name="show")
    async def show() -> list[Any]:
        call = current_call()
        return [call.id, call.attempt, call.parent_id, call.root_id]

    @site.atask(name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    @site.atask(name="count")
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    return site


def _call(id: str, task: str, *args: Any, **kwargs: Any) -> list[Any]:
    return [CALL, 1, id, task, encode([list(args), kwargs]), "msgpack"]


async def _grant(peer: Peer, granted: bool = True, begun: bool = False) -> list[Any]:
    """Say to the worker that asks whether a copy of a call may start; returns what it asked."""
    (claim,) = await peer.answer()
    _, _, call_id, _, copy, worker, begins, _, run, _ = claim
    grant = [GRANT, 1, call_id, copy, granted, begins or begun, run if begins else 0]
    await peer.control(encode([grant]), f"worker:{worker}")
    return list(claim)


# --- a caller made by hand


async def test_shortest_call(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open():
        await peer.send(_call("my-id", "add", 1, b=2))
        ((tag, version, call_id, status, payload, codec, worker, run_us, parked, work_us),) = await peer.answer()
        assert (tag, version, call_id, status, codec) == (REPLY, 1, "my-id", VALUE, "msgpack")
        assert decode(payload) == 3
        assert worker == plain_site.worker.id
        assert run_us >= 0
        assert (parked, work_us) == (False, 0)


async def test_call_with_every_field(plain_site: Site, peer: Peer) -> None:
    now = int(time.time() * 1000)
    fields = [
        60_000,
        now,
        2,
        5,
        0,
        1,
        "the-root",
        "the-parent",
        ["another-worker"],
        0,
        {"variable": encode(1)},
        b"sig",
        False,
        "",
        "the-key",
        2,
        {"header": "text"},
        True,
    ]
    async with plain_site.open():
        await peer.send([*_call("my-id", "show"), *fields])
        await _grant(peer)
        ((_, _, _, status, payload, *_),) = await peer.answer()
        assert (status, decode(payload)) == (VALUE, ["my-id", 2, "the-parent", "the-root"])
        await peer.send([*_call("id-2", "show"), *fields, "a field", "of a later revision"])
        await _grant(peer)
        ((_, _, call_id, status, payload, *_),) = await peer.answer()
        assert (call_id, status, decode(payload)[0]) == ("id-2", VALUE, "id-2")


async def test_later_attempts_are_claimed(plain_site: Site, peer: Peer) -> None:
    rest = [None, 0, 2]  # timeout_ms, sent_ms, attempt
    async with plain_site.open():
        for copy, granted in (("a", False), ("b", True)):
            await peer.send([*_call("my-id", "show"), *rest], message_id=copy)
            asked = [CLAIM, 1, "my-id", 2, copy, plain_site.worker.id, False, False, 0, ""]
            assert await _grant(peer, granted) == asked
        ((tag, _, call_id, status, payload, *_),) = await peer.answer()
        assert (tag, call_id, status, decode(payload)[1]) == (REPLY, "my-id", VALUE, 2)
        assert plain_site.worker.started == 1
        calls = [[*_call(f"id-{n}", "show"), *rest] for n in range(3)]
        await peer.send(*calls, message_id="c")  # several in one message cannot be told apart
        assert {reply[2] for reply in await peer.answers(3)} == {"id-0", "id-1", "id-2"}


@pytest.mark.parametrize("begun", [False, True])
async def test_a_last_attempt_is_lost_only_if_it_has_begun(plain_site: Site, peer: Peer, begun: bool) -> None:
    async with plain_site.open():
        await soon(plain_site.worker.drain())
        solo = await peer.channel.get_queue(f"{peer.work_queue()}.solo")
        await peer.send([*_call("my-id", "add", 1), None, 0, 3, 3], queue=solo.name, message_id="a")
        await (await solo.get()).nack(requeue=True)  # a worker had it, and has died
        worker = await plain_site.serve()
        claim = [CLAIM, 1, "my-id", 3, "a", worker.id]
        assert await _grant(peer, begun=begun) == [*claim, False, True, 0, ""]
        if not begun:
            assert await _grant(peer) == [*claim, True, True, 1, ""]
        await peer.send([*_call("other", "add", 1), None, 0, 3, 3], queue=solo.name, message_id="b")
        endings = []
        while len(endings) < 2:
            if endings == ([] if begun else [("my-id", VALUE)]):  # it need not wait until the first one is lost
                for begins in (False, True):
                    asked = await _grant(peer)
                    assert asked[:8] == [CLAIM, 1, "other", 3, "b", worker.id, begins, False]
            ((_, _, call_id, status, *_),) = await peer.answer()
            endings.append((call_id, status))
        assert endings == ([("other", VALUE), ("my-id", LOST)] if begun else [("my-id", VALUE), ("other", VALUE)])
        assert worker.started == (1 if begun else 2)


async def test_last_attempts_come_one_at_a_time(
    plain_site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in a queue of their own. Another worker had the first one: others need not wait until it is known
    to be lost. It comes just when this worker is about to learn that it consumes the queue."""
    consume_work = Link.consume_work

    async def learn_late(link: Link, name: str, callback: ConsumerCallback, window: int) -> str:
        async def on_message(message: DeliveredMessage) -> None:
            arrived.set()
            await callback(message)

        arrived = asyncio.Event()
        tag = await consume_work(link, name, on_message, window)
        if name == solo.name:
            await arrived.wait()
            for _ in range(10):  # turns of the event loop, in which it must not begin to consume it once more
                await asyncio.sleep(0)
        return tag

    async def send(number: int) -> None:
        call = [*_call(f"id-{number}", "add", number), None, 0, 3, 3]  # timeout_ms, sent_ms, attempt, max_attempts
        copy = f"copy-{number}" if number else 255 * "c"  # too long: its caller is not asked
        await peer.send(call, queue=solo.name, message_id=copy)

    async with plain_site.open():
        await soon(plain_site.worker.drain())
        solo = await peer.channel.get_queue(f"{peer.work_queue()}.solo")
        await send(0)
        await (await solo.get()).nack(requeue=True)
        with monkeypatch.context() as patch:
            patch.setattr(Link, "consume_work", learn_late)
            await send(1)  # for the consumer that takes the place of the first one meanwhile
            await plain_site.serve()
        endings = dict.fromkeys(f"id-{number}" for number in range(2))
        for begins in (False, True):
            assert (await _grant(peer))[2:7:4] == ["id-1", begins]
        for _ in endings:
            ((tag, _, call_id, status, *_),) = await peer.answer()
            assert tag == REPLY
            endings[call_id] = status
        assert endings == {"id-0": LOST, "id-1": VALUE}
        for number in range(2, 6):
            await send(number)
        for number in range(2, 6):
            for begins in (False, True):
                assert (await _grant(peer))[2:7:4] == [f"id-{number}", begins]
            ((tag, _, call_id, status, *_),) = await peer.answer()
            assert (tag, call_id, status) == (REPLY, f"id-{number}", VALUE)


async def test_callers_that_are_gone_keep_no_other_last_attempt_waiting(plain_site: Site, peer: Peer) -> None:
    """A worker that died leaves many, of which it was the caller: a second for each would be too long."""
    async with plain_site.open():
        await soon(plain_site.worker.drain())
        solo = f"{peer.work_queue()}.solo"
        gone = [await peer.channel.declare_queue(f"{peer.prefix}.r.gone-{n}", durable=True) for n in range(4)]
        for number in range(2 * int(PATIENCE)):  # nobody consumes these
            call = [*_call(f"gone-{number}", "add", number), None, 0, 3, 3]
            reply_to = gone[number % len(gone)].name
            await peer.send(call, queue=solo, message_id=f"gone-{number}", reply_to=reply_to)
        await peer.send([*_call("my-id", "add", 1), None, 0, 3, 3], queue=solo, message_id="a")
        worker = await plain_site.serve()
        for begins in (False, True):
            assert await _grant(peer) == [CLAIM, 1, "my-id", 3, "a", worker.id, begins, False, int(begins), ""]
        ((tag, _, call_id, status, *_),) = await peer.answer()
        assert (tag, call_id, status) == (REPLY, "my-id", VALUE)
        assert worker.started == 1
        for queue in gone:
            await queue.delete(if_unused=False, if_empty=False)


async def test_a_last_attempt_does_not_begin_whose_reply_queue_is_gone(
    plain_site: Site, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller has sent the call again, with another reply queue, while it waited for the worker to be free."""
    rest = [None, 0, 3, 3]  # timeout_ms, sent_ms, attempt, max_attempts
    ran: list[str | None] = []

    @plain_site.atask(name="note")
    async def note() -> None:
        ran.append(current_call().id)

    async with plain_site.open():
        replies = await peer.channel.declare_queue(f"{peer.prefix}.r.old", durable=True)
        asked = await peer.consume(replies.name)
        await peer.send(_call("before", "forever"))
        await until(lambda: plain_site.worker.started == 1)
        solo = await peer.channel.get_queue(f"{peer.work_queue()}.solo")
        await peer.send([*_call("my-id", "note"), *rest], queue=solo.name, message_id="a", reply_to=replies.name)
        ((tag, *_),) = decode((await soon(asked.get())).body)
        assert tag == CLAIM
        await peer.control(encode([[GRANT, 1, "my-id", "a", True, False]]), f"worker:{plain_site.worker.id}")
        await until(lambda: plain_site.worker.holds("my-id"))
        await replies.delete(if_unused=False, if_empty=False)
        await peer.control(encode([[CANCEL, 1, ["before"]]]), f"worker:{plain_site.worker.id}")
        with caplog.at_level("DEBUG", "atasks.amqp"):
            await until(lambda: "is surplus" in caplog.text)
        await soon(plain_site.worker.drain())
        assert ran == []
        assert (await solo.declare()).message_count == 0


async def test_several_calls_in_one_message(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open(concurrency=2):
        await peer.send(*[_call(f"id-{n}", "add", n) for n in range(50)])
        replies = await peer.answers(50)
        assert {reply[2]: decode(reply[4]) for reply in replies} == {f"id-{n}": n + 10 for n in range(50)}


@pytest.mark.parametrize(
    ("task", "fields", "status"),
    [
        ("leave", [], CANCELLED),
        ("forever", [50], TIMED_OUT),
        ("add", [1000, 1], TIMED_OUT),
        ("missing", [], UNKNOWN),
        ("lock", [], ENCODE_ERROR),
    ],
)
async def test_endings(plain_site: Site, peer: Peer, task: str, fields: list[int], status: int) -> None:
    sent = fields[1:] or [int(time.time() * 1000)]
    async with plain_site.open():
        await peer.send([*_call("my-id", task), *fields[:1], *(sent if fields else [])])
        ((tag, _, call_id, found, payload, codec, *_),) = await peer.answer()
        assert (tag, call_id, found, codec) == (REPLY, "my-id", status, "")
        message, attempts, worker, ran_ms, awaits = decode(payload)
        assert isinstance(message, str)
        assert message
        assert (attempts, awaits) == (0, None)
        assert worker in ("", plain_site.worker.id)
        assert ran_ms >= -1


async def test_exception(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open():
        await peer.send(_call("my-id", "fail"))
        ((_, _, _, status, payload, codec, *_),) = await peer.answer()
        assert (status, codec) == (RAISED, "msgpack")
        (nodes,) = decode(payload)
        _, module, qualname, message, values, notes, cause, context, suppress, members, traceback, held = nodes[-1]
        assert (module, qualname, message) == ("builtins", "ValueError", "('text', 7)")
        assert decode(values) == [["text", 7], {}]
        assert "my-id" in notes[-1]
        assert (cause, context, suppress, members, held) == (None, None, False, [], [])
        assert "in fail" in traceback


async def test_cancel_by_hand(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open():
        worker = plain_site.worker
        await peer.send(_call("one", "forever"), _call("two", "forever"))
        await until(lambda: worker.held == 2)
        await peer.control(encode([[CANCEL, 1, ["one", "two", "three"]]]), f"queue:{plain_site.namespace}:default")
        await until(lambda: worker.held == 0)
        await peer.send(_call("three", "add", 1), _call("four", "add", 1))
        ((_, _, call_id, *_),) = await peer.answer()
        assert call_id == "four"  # the await of "three" had ended before it came


async def test_ask_by_hand(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open():
        worker = plain_site.worker
        await peer.send(_call("held", "forever"))
        await until(lambda: worker.held == 1)
        key = f"queue:{plain_site.namespace}:default"
        await peer.control(encode([[ASK, 1, ["unknown", "held"]]]), key, reply_to=peer.replies.name)
        ((tag, version, ids, worker_id, token, (ran_ms,), awaits),) = await peer.answer()
        assert (tag, version, ids, worker_id, token) == (HELD, 1, ["held"], worker.id, "")
        assert ran_ms >= 0
        assert awaits == [None]
        await peer.control(encode([[ASK, 1, ["unknown"], "a-token"]]), key, reply_to=peer.replies.name)
        assert await peer.answer() == [[HELD, 1, [], worker.id, "a-token", [], []]]
        await peer.control(encode([[CANCEL, 1, ["held"]]]), key)


async def test_stream_by_hand(plain_site: Site, peer: Peer) -> None:
    """The items of a stream are not written to the broker's disk, because the worker keeps them; the end is."""
    address = (await peer.channel.declare_queue(exclusive=True)).name
    arrived = await peer.consume(address)
    async with plain_site.open():
        worker = plain_site.worker.id
        call = [*_call("some-stream", "count", 6), None, 0, 1, 3, 0, 0, None, None, None, 4]
        await peer.send(call, reply_to=address, delivery_mode=2)
        message = await soon(arrived.get())
        items = [encode(number) for number in range(4)]
        assert decode(message.body) == [[ITEM, 1, "some-stream", 0, items, "msgpack", worker, 1]]
        assert message.delivery_mode == 1
        key = f"worker:{worker}"
        await peer.control(encode([[CREDIT, 1, "some-stream", 4, 4, None]]), key, reply_to=address)
        message = await soon(arrived.get())
        items = [encode(number) for number in range(4, 6)]
        assert decode(message.body) == [[ITEM, 1, "some-stream", 4, items, "msgpack", worker, 1]]
        message = await soon(arrived.get())
        ((tag, _, call_id, count, (_, _, _, status, *_), _),) = decode(message.body)
        assert (tag, call_id, count, status) == (END, "some-stream", 6, VALUE)
        assert message.delivery_mode == 2


# --- a worker made by hand


async def test_request_as_a_worker_sees_it(plain_site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")
    item = plain_site.router.registry.get("add")
    assert item is not None
    add = item.task.options(timeout=60, priority=2, durable=False, max_attempts=4, orphan="run", batch=False)
    async with plain_site.open(serve=False):
        before = int(time.time() * 1000)
        waiting = asyncio.create_task(add(1, b=2))
        request = await soon(requests.get())
        assert (request.content_type, request.priority, request.delivery_mode) == (CONTENT_TYPE, 2, 1)
        assert request.expiration is not None
        assert float(request.expiration) >= 60
        ((tag, version, call_id, task, payload, codec, timeout, sent, attempt, most, delivery, orphan, *rest),) = (
            decode(request.body)
        )
        assert (tag, version, task, codec) == (CALL, 1, "add", "msgpack")
        assert request.message_id == call_id
        assert decode(payload) == [[1], {"b": 2}]
        assert timeout == 60_000
        assert before - 1 <= sent <= int(time.time() * 1000)
        assert (attempt, most, delivery, orphan) == (1, 4, 0, 1)
        assert rest[:2] == [None, None]
        await peer.send([REPLY, 1, call_id, VALUE, encode(3), "msgpack"], queue=request.reply_to)
        assert await soon(waiting) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(CANCELLED, CallCancelled), (UNKNOWN, UnknownTask), (LOST, WorkerLost)],
)
async def test_endings_made_by_hand(plain_site: Site, peer: Peer, status: int, kind: type[Exception]) -> None:
    requests = await peer.declare_work_queue("default")
    async with plain_site.open(serve=False):
        waiting = asyncio.create_task(plain_site.router.send_request("add", 1))
        request = await soon(requests.get())
        ((_, _, call_id, *_),) = decode(request.body)
        await peer.send([REPLY, 1, call_id, status, encode(["by hand", 3]), ""], queue=request.reply_to)
        with pytest.raises(kind, match="by hand") as caught:
            await soon(waiting)
        if isinstance(caught.value, WorkerLost):
            assert caught.value.attempts == 3


async def test_a_worker_whose_clock_is_wrong_is_not_believed(plain_site: Site, peer: Peer) -> None:
    """One of an older version, which ends a call at once; the error does not say that its time is over."""
    requests = await peer.declare_work_queue("default")
    item = plain_site.router.registry.get("add")
    assert item is not None
    async with plain_site.open(serve=False):
        waiting = asyncio.create_task(item.task.options(timeout=60)(1))
        request = await soon(requests.get())
        ((_, _, call_id, *_),) = decode(request.body)
        reply = [REPLY, 1, call_id, TIMED_OUT, encode(["the deadline passed", 0]), "", "old-worker"]
        await peer.send(reply, queue=request.reply_to)
        with pytest.raises(CallTimeout, match=r"worker old-worker took .* before it is: set the clocks") as caught:
            await soon(waiting)
        assert "did not finish within" not in str(caught.value)


async def test_second_reply_is_ignored(plain_site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")
    async with plain_site.open(serve=False):
        for expected in (1, 2):
            waiting = asyncio.create_task(plain_site.router.send_request("add", 1))
            request = await soon(requests.get())
            ((_, _, call_id, *_),) = decode(request.body)
            replies = [[REPLY, 1, call_id, VALUE, encode(n), "msgpack"] for n in (expected, 77)]
            await peer.send(*replies, queue=request.reply_to)
            await peer.send(replies[1], queue=request.reply_to)
            assert await soon(waiting) == expected


async def test_cancellation_is_announced(plain_site: Site, peer: Peer) -> None:
    requests = await peer.declare_work_queue("default")
    async with plain_site.open(serve=False):
        control = await peer.listen(f"queue:{plain_site.namespace}:default")
        waiting = asyncio.create_task(plain_site.router.send_request("add", 1))
        ((_, _, call_id, *_),) = decode((await soon(requests.get())).body)
        waiting.cancel()
        assert decode((await soon(control.get())).body) == [[CANCEL, 1, [call_id]]]
        await asyncio.wait([waiting])
        assert waiting.cancelled()


async def test_cancelled_await_does_not_wait_for_its_run(site: Site) -> None:
    cleaning, released = asyncio.Event(), asyncio.Event()

    @site.atask
    async def slow_to_leave() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await released.wait()

    async with site.open():
        waiting = asyncio.create_task(slow_to_leave())
        await until(lambda: site.worker.held == 1)
        waiting.cancel()
        await soon(asyncio.wait([waiting]))
        assert waiting.cancelled()
        await soon(cleaning.wait())
        assert site.worker.held == 1
        released.set()


async def test_announced_worker_gets_the_calls_that_wait(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open(serve=False):
        waiting = asyncio.create_task(plain_site.router.send_request("add", 1))
        await asyncio.sleep(0)
        requests = await peer.declare_work_queue("default")
        up = [UP, 1, plain_site.namespace, "default", "a worker made by hand"]
        request = None
        async with asyncio.timeout(30):
            while request is None:
                # Again, as the caller may not listen yet.
                await peer.control(encode([up]), f"up:{plain_site.namespace}:default", mandatory=False)
                try:
                    async with asyncio.timeout(0.1):
                        request = await requests.get()
                except TimeoutError:
                    continue
        ((_, _, call_id, *_),) = decode(request.body)
        await peer.send([REPLY, 1, call_id, VALUE, encode(5), "msgpack"], queue=request.reply_to)
        assert await soon(waiting) == 5


async def test_worker_announces_the_queue_that_it_declares(plain_site: Site, peer: Peer) -> None:
    async with plain_site.open(serve=False):
        up = await peer.listen(f"up:{plain_site.namespace}:default")
        worker = await plain_site.serve()
        assert decode((await soon(up.get())).body) == [[UP, 1, plain_site.namespace, "default", worker.id]]


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_announcement_does_not_run_again_what_runs(site: Site, peer: Peer, delivery: Any) -> None:
    """A worker declares its queue, and then announces it: a call that came in between is not lost."""
    gate = asyncio.Event()
    ran = []

    @site.atask(delivery=delivery)
    async def work() -> str:
        ran.append(current_call().state)
        await gate.wait()
        return "once"

    @site.atask
    async def other() -> None: ...

    async with site.open(serve=False):
        await site.serve(concurrency=1, state="one")
        waiting = asyncio.create_task(work())
        await until(lambda: ran)
        await site.serve(concurrency=2, state="two")
        up = [UP, 1, site.namespace, "default", site.worker.id]
        await peer.control(encode([up]), f"up:{site.namespace}:default")
        await soon(other())  # its reply comes after the announcement,
        await soon(other())  # and it runs after whatever that made the caller send, on the worker that is free
        assert ran == ["one"]
        gate.set()
        assert await soon(waiting) == "once"
