"""The beginning of a last attempt is granted to one worker, whatever is late: each side meets one made by hand."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from atasks import MsgpackCodec
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.peer import Peer

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode

CALL, REPLY, CANCEL = 1, 2, 3
CLAIM, GRANT = 11, 12
VALUE, LOST = 0, 5


@pytest.fixture
def plain_site(site: Site) -> Site:
    """A site whose atasks take and give plain MessagePack."""
    MsgpackCodec(site.namespace)

    @site.atask(name="add", max_attempts=2)
    async def add(a: int, b: int = 10) -> int:
        return a + b

    @site.atask(name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    return site


# --- a caller, and workers made by hand


class Workers:
    """Workers made by hand that claim the second and last attempt of one call."""

    def __init__(self, peer: Peer, call_id: str, reply_to: str) -> None:
        self._peer = peer
        self._call_id = call_id
        self._reply_to = reply_to
        self._answers: dict[str, Any] = {}

    async def claim(
        self, worker: str, begins: bool, again: bool, run: int | None = None, over: str = "", copy: str = "a"
    ) -> tuple[bool, bool, int]:
        """Claim the call, and return the caller's answer: granted, begun, and the number of the beginning. With
        `run` None the claim is one of an older version, which says nothing of beginnings."""
        if worker not in self._answers:
            self._answers[worker] = await self._peer.listen(f"worker:{worker}")
        envelope = [CLAIM, 1, self._call_id, 2, copy, worker, begins, again]
        if run is not None:
            envelope += [run, over]
        await self._peer.send(envelope, queue=self._reply_to)
        message = await soon(self._answers[worker].get())
        ((tag, _, call_id, answered, granted, begun, beginning, now_ms, _),) = decode(message.body)
        assert (tag, call_id, answered) == (GRANT, self._call_id, copy)
        assert abs(now_ms / 1000 - time.time()) < 10
        return granted, begun, beginning


NO = (False, False, 0)
YES = (True, False, 0)
BEGUN = (True, True, 0)

CASES: dict[str, list[tuple[tuple[Any, ...], tuple[bool, bool, int]]]] = {
    "a claim that comes late, from before its connection was cut": [
        (("one", False, False, 0), YES),
        (("two", False, True, 0), YES),
        (("two", True, True, 1), (True, True, 1)),
        (("one", False, False, 0), BEGUN),  # it waited where the broker took nothing
        (("one", True, True, 1), NO),
        (("three", False, True, 0), BEGUN),
        (("three", False, False, 0), BEGUN),
    ],
    "a beginning that is asked for late": [
        (("one", False, False, 0), YES),
        (("two", False, True, 0), YES),
        (("two", True, True, 7), (True, True, 7)),
        (("one", True, False, 1), NO),
        (("two", True, True, 7), (True, True, 7)),
        (("two", False, True, 7), (True, True, 7)),
    ],
    "one that was given back": [
        (("one", True, False, 1), (True, True, 1)),
        (("two", False, False, 0, "one:1"), YES),
        (("two", True, False, 1, "one:1"), (True, True, 1)),
        (("three", False, True, 0, "one:1"), BEGUN),
        (("three", True, False, 1, "one:1"), NO),
        (("one", True, False, 2, "two:1"), (True, True, 2)),
        (("two", True, False, 1, "one:1"), NO),
        (("three", False, False, 0, "one:1"), BEGUN),  # what is over is an earlier beginning of that worker
        (("three", True, False, 1, "one:2"), (True, True, 1)),
    ],
    "words that make no sense": [
        (("one", True, False, 3), (True, True, 3)),
        (("two", True, False, 1, "one:2"), NO),
        (("two", True, False, 1, "one"), NO),
        (("two", True, False, 1, "one:x"), NO),
        (("two", True, False, 1, ":3"), NO),
        (("two", True, False, 1, "three:3"), NO),
        (("two", True, False, 1, "one:3", "another copy"), NO),
        (("two", True, False, 1, "one:3"), (True, True, 1)),
    ],
    "workers of the version before": [
        (("one", True, False, None), (True, True, 0)),
        (("two", False, True, None), BEGUN),
        (("two", False, False, None), YES),  # it was given back
        (("two", True, False, None), (True, True, 0)),
        (("three", False, False, 0), YES),
        (("three", True, False, 1), (True, True, 1)),
        (("one", False, False, None), BEGUN),
    ],
}


@pytest.mark.parametrize("case", CASES)
async def test_a_beginning_is_granted_to_one_worker(plain_site: Site, peer: Peer, case: str) -> None:
    requests = await peer.declare_work_queue("default")
    async with plain_site.open(serve=False):
        waiting = asyncio.create_task(plain_site.router.send_request("add", 1))
        request = await soon(requests.get())
        ((_, _, call_id, *_),) = decode(request.body)
        workers = Workers(peer, call_id, request.reply_to or "")
        for number, (asked, answer) in enumerate(CASES[case]):
            assert await workers.claim(*asked) == answer, f"answer {number}, to {asked}"
        await peer.send([REPLY, 1, call_id, VALUE, encode(3), "msgpack"], queue=request.reply_to)
        assert await soon(waiting) == 3
        assert await workers.claim("two", True, True, 1) == NO, "nobody awaits it any more"


# --- a worker, and a caller made by hand


class Caller:
    """Answers the claims of a worker, or does not."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def send_last_attempt(self, call_id: str) -> None:
        call = [CALL, 1, call_id, "add", encode([[1], {}]), "msgpack", None, 0, 2, 2]
        await self._peer.send(call, queue=f"{self._peer.work_queue()}.solo", message_id=f"{call_id}-copy")

    async def asked(self) -> list[Any]:
        """The next claim."""
        ((tag, *claim),) = await self._peer.answer()
        assert tag == CLAIM
        return list(claim)

    async def grant(self, claim: list[Any], begun: bool, run: int | None) -> None:
        _, call_id, _, copy, worker, *_ = claim
        grant = [GRANT, 1, call_id, copy, True, begun] + [run] * (run is not None)
        await self._peer.control(encode([grant]), f"worker:{worker}")


def _begins(claim: list[Any]) -> tuple[bool, int]:
    return claim[5], claim[7]


async def test_a_last_attempt_waits_for_the_word_of_a_caller_that_has_become_silent(
    plain_site: Site, peer: Peer
) -> None:
    """The call has the worker for itself for a second; then others go on, and it begins once the grant has
    come."""
    caller = Caller(peer)
    async with plain_site.open():
        await caller.send_last_attempt("slow")
        first = await caller.asked()
        assert _begins(first) == (False, 0)
        await caller.grant(first, False, 0)
        begins = await caller.asked()
        assert _begins(begins) == (True, 1)
        for _ in range(4):  # some five seconds
            asked = await caller.asked()
            assert _begins(asked) == (False, 1)
        assert await soon(plain_site.router.send_request("add", 5)) == 15, "other calls run meanwhile"
        assert plain_site.worker.held == 0
        await caller.grant(begins, True, 1)
        (reply,) = await _until_reply(peer)
        assert (reply[2], reply[3], decode(reply[4])) == ("slow", VALUE, 11)


async def test_a_late_answer_begins_nothing(plain_site: Site, peer: Peer) -> None:
    """An earlier claim is answered when it has begun elsewhere: that is no leave to begin."""
    caller = Caller(peer)
    async with plain_site.open():
        await caller.send_last_attempt("id")
        first = await caller.asked()
        await caller.grant(first, False, 0)
        assert _begins(await caller.asked()) == (True, 1)
        await caller.grant(first, True, 0)
        asked = await caller.asked()  # it went back to the broker, and has come again
        assert (*_begins(asked), asked[6]) == (False, 0, True)
        assert plain_site.worker.started == 1
        await caller.grant(asked, True, 0)
        (reply,) = await _until_reply(peer)
        assert (reply[2], reply[3]) == ("id", LOST), "nobody holds it who has begun it"


async def test_what_waits_while_a_worker_stops_does_not_start_when_it_serves_again(
    plain_site: Site, peer: Peer
) -> None:
    caller = Caller(peer)
    async with plain_site.open():
        await caller.send_last_attempt("id")
        first = await caller.asked()
        transport = plain_site.worker.transport
        assert isinstance(transport, AMQPTransport)
        await transport.stop_serving(plain_site.worker)
        await transport.serve(plain_site.worker)
        again = await caller.asked()
        assert again[:4] == first[:4], "it was given back, and is the same copy"
        assert plain_site.worker.started == 0
        await caller.grant(again, False, 0)
        begins = await caller.asked()
        await caller.grant(begins, True, begins[7])
        (reply,) = await _until_reply(peer)
        assert (reply[2], reply[3]) == ("id", VALUE)


async def test_what_a_worker_gives_back_says_that_its_beginning_is_over(plain_site: Site, peer: Peer) -> None:
    caller = Caller(peer)
    call = [CALL, 1, "id", "forever", encode([[], {}]), "msgpack", None, 0, 2, 2]
    async with plain_site.open():
        await peer.send(call, queue=f"{peer.work_queue()}.solo", message_id="copy")
        await caller.grant(await caller.asked(), False, 0)
        begins = await caller.asked()
        assert begins[8] == ""
        await caller.grant(begins, True, begins[7])
        await until(lambda: any(run.task is not None for run in plain_site.worker.runs))
        second = await plain_site.serve()
        await soon(plain_site.worker.drain(0))
        asked = await caller.asked()
        assert asked == [1, "id", 2, "copy", second.id, False, False, 0, f"{plain_site.worker.id}:1"]
        await peer.control(encode([[GRANT, 1, "id", "copy", False]]), f"worker:{second.id}")
        await until(lambda: second.held == 0)


@pytest.mark.parametrize(("own", "lost"), [(3, True), (20, True), (30, False)])
async def test_a_call_does_not_get_as_many_attempts_as_it_asks_for(
    site: Site, peer: Peer, own: int, lost: bool
) -> None:
    """Twenty at most, or what the definition of the atask says."""
    MsgpackCodec(site.namespace)

    @site.atask(name="add", max_attempts=own)
    async def add(a: int, b: int = 10) -> int:
        return a + b

    call = [CALL, 1, "id", "add", encode([[1], {}]), "msgpack", None, 0, 20, 10**6]
    async with site.open():
        await soon(site.worker.drain())
        await peer.send(call, message_id="copy")
        work = await peer.channel.get_queue(peer.work_queue())
        await (await work.get()).nack(requeue=True)  # a worker had it, and has died
        await site.serve()
        if lost:
            (reply,) = await _until_reply(peer)
            assert (reply[2], reply[3], decode(reply[4])[1]) == ("id", LOST, 20)
        else:
            claim = await Caller(peer).asked()
            assert claim[2] == 21
            await peer.control(encode([[GRANT, 1, "id", claim[3], False]]), f"worker:{claim[4]}")
            await until(lambda: site.workers[-1].held == 0)


async def _until_reply(peer: Peer) -> list[Any]:
    """The next replies; claims that came before them are let go."""
    while True:
        replies = [item for item in await peer.answer() if item[0] == REPLY]
        if replies:
            return replies
