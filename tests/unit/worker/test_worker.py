"""The worker: from a delivery to its one ending, with slots, deadlines, cancellation and drains in between."""

# Private attributes: `Worker._backlog` must be empty, and `_deadline` is asked with clocks that differ.

from __future__ import annotations

import asyncio
import logging
import pickle
import random
import time
from typing import Any

import pytest

import atasks
from atasks import wire
from atasks.tasks import atask
from atasks.testing import until
from atasks.tracking.counters import BUSY
from atasks.tracking.queries import KINDS, Watch
from atasks.tracking.watching import Watching
from atasks.transport.loopback import LoopbackTransport
from atasks.transport.minimal import respond
from atasks.wire import AT_MOST_ONCE, Call, Query, Reply, Status
from atasks.worker.worker import Worker
from tests.busy import calm
from tests.unit.worker.deliveries import Gate, Recorded, serving


@pytest.fixture
def gate(namespace: str) -> Gate:
    return Gate(namespace)


async def test_a_call_is_answered_with_its_value(namespace: str) -> None:
    @atask(name="double", namespace=namespace)
    async def double(n: int) -> int:
        return 2 * n

    async with serving(namespace) as site:
        call, delivery = site.deliver("double", 21)
        reply = await delivery.the_reply()
        assert (reply.id, reply.status, reply.worker, reply.parked) == (
            call.id,
            Status.VALUE,
            site.worker.id,
            False,
        )
        assert pickle.loads(reply.payload) == 42
        assert site.all_free()


async def test_a_call_that_may_not_begin_ends_while_somebody_watches(namespace: str, gate: Gate) -> None:
    """The transport has taken back what the call came by."""
    async with serving(namespace) as site:
        watching = Watching(site.worker)
        assert watching.renew(Query(wire.VERSION, "token", b""), Watch(sorted(KINDS)), None, None) == ""
        call, _ = site.deliver("pass")
        run = site.worker.find(call.id)
        assert run is not None

        async def refuse() -> bool:
            run.deliveries = ()
            return False

        run.permit = refuse
        await until(site.all_free)
        assert run.ended
        assert run.queue == "default"
        watching.stop()


@pytest.mark.parametrize("redelivers", [False, True])
async def test_cancelled_in_the_turn_of_its_delivery(namespace: str, gate: Gate, redelivers: bool) -> None:
    """A request and its cancellation may be read from the wire together: the task has not taken a step yet."""
    async with serving(namespace, redelivers=redelivers) as site:
        call, delivery = site.deliver("pass")
        site.worker.cancel(call.id)
        assert await delivery.how() == "drop"
        assert site.all_free()
        gate.open.set()
        _, delivery = site.deliver("pass", 2)
        assert pickle.loads((await delivery.the_reply()).payload) == 2
        assert site.worker.cells[BUSY] == 0


async def test_unknown_task_cancelled_in_the_turn_of_its_delivery(namespace: str) -> None:
    async with serving(namespace) as site:
        call, delivery = site.deliver("nobody.knows")
        site.worker.cancel(call.id)
        await delivery.how()
        assert site.all_free()


async def test_drained_in_the_turn_of_its_delivery(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        started, unstarted = site.deliver("pass")[1], site.deliver("pass")[1]
        await asyncio.wait_for(site.worker.drain(0), 3)
        assert [await started.how(), await unstarted.how()] == ["give_back", "give_back"]
        assert site.all_free()


async def test_the_same_call_twice(namespace: str, gate: Gate) -> None:
    """A user's transport may send again what it did not see answered: one run, and an answer for each."""
    async with serving(namespace, concurrency=2) as site:
        call, first = site.deliver("pass", 1)
        second = Recorded()
        site.worker.deliver(call, second)
        await gate.until_inside(1)
        gate.open.set()
        assert pickle.loads((await first.the_reply()).payload) == 1
        assert pickle.loads((await second.the_reply()).payload) == 1
        assert gate.inside == [1]
        assert site.all_free()


async def test_the_same_call_after_it_finished(namespace: str) -> None:
    runs: list[int] = []

    @atask(name="count", namespace=namespace)
    async def count() -> int:
        runs.append(1)
        return len(runs)

    async with serving(namespace, redelivers=True) as site:
        call, first = site.deliver("count")
        reply = await first.the_reply()
        again = Recorded()
        site.worker.deliver(call, again)
        assert await again.the_reply() == reply
        assert runs == [1]
        assert site.worker.knows(call.id)
        assert site.worker.finished(call.id) == reply
        assert [site.worker.knows_any(ids) for ids in (["other", call.id], ["other"])] == [True, False]


async def test_a_call_that_was_cancelled_before_it_came(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        call, delivery = site.call("pass"), Recorded()
        site.worker.cancel(call.id)
        site.worker.deliver(call, delivery)
        assert await delivery.how() == "drop"
        assert gate.inside == []


async def test_a_cancellation_does_not_count_against_a_call_that_was_made_after_it(
    namespace: str, gate: Gate
) -> None:
    async with serving(namespace) as site:
        call, delivery = site.call("pass"), Recorded()
        site.worker.cancel(call.id)
        call.sent_ms = int(time.time() * 1000) + 2
        gate.open.set()
        site.worker.deliver(call, delivery)
        await delivery.the_reply()


async def test_a_call_that_is_cancelled_while_it_waits_for_a_slot(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        _, running = site.deliver("pass", 1)
        call, waiting = site.deliver("pass", 2)
        _, last = site.deliver("pass", 3)
        assert site.worker.unstarted == 2
        site.worker.cancel(call.id)
        assert await waiting.how() == "drop"
        assert (site.worker.unstarted, site.worker.held) == (1, 2)
        gate.open.set()
        await running.the_reply()
        await last.the_reply()
        assert gate.inside == [1, 3]
        assert site.all_free()


async def test_many_that_are_cancelled_unstarted_are_not_kept(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        _, running = site.deliver("pass")
        for _ in range(100):
            call, _ = site.deliver("pass", parent=random.choice([None, "parent"]))
            site.worker.cancel(call.id)
        assert (site.worker.unstarted, site.worker._backlog.runs()) == (0, [])
        gate.open.set()
        await running.the_reply()
        assert site.all_free()


async def test_children_start_before_new_roots(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        deliveries = [
            site.deliver("pass", who, parent=parent)[1]
            for who, parent in [
                ("first", None),
                ("root", None),
                ("child", "a parent"),
                ("second child", "a parent"),
            ]
        ]
        gate.open.set()
        for delivery in deliveries:
            await delivery.the_reply()
        assert gate.inside == ["first", "child", "second child", "root"]


@pytest.mark.parametrize("parent", [None, "a parent"])
async def test_a_deadline_that_passes_before_the_start(namespace: str, gate: Gate, parent: str | None) -> None:
    """No slot is taken, and what waits behind it starts."""
    async with serving(namespace) as site:
        _, running = site.deliver("pass", 1)
        _, expired = site.deliver("pass", 2, timeout_ms=1, sent_ms=0, parent=parent)
        _, last = site.deliver("pass", 3, parent=parent)
        gate.open.set()
        assert (await expired.the_reply()).status == Status.TIMED_OUT
        assert (await last.the_reply()).status == Status.VALUE
        await running.the_reply()
        assert gate.inside == [1, 3]
        assert site.all_free()


async def test_a_deadline_that_has_passed_on_arrival(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        _, expired = site.deliver("pass", timeout_ms=1, sent_ms=0)
        assert (await expired.the_reply()).status == Status.TIMED_OUT
        assert gate.inside == []
        assert site.all_free()


async def test_clocks_may_differ_a_little(namespace: str, gate: Gate) -> None:
    """A caller whose clock is ahead does not get more time, and one that is behind a little not less."""
    async with serving(namespace) as site:
        transport = site.worker.transport
        transport.clock_skew = 2.0
        now = site.worker.loop.time()
        for ahead in (1.9, 0.0, -1.9, 3600):
            sent = int((time.time() + ahead) * 1000)
            deadline = site.worker._deadline(site.call("pass", timeout_ms=5000, sent_ms=sent))
            assert deadline is not None
            assert now + 5 <= deadline <= site.worker.loop.time() + 5
        late = site.worker._deadline(site.call("pass", timeout_ms=5000, sent_ms=int((time.time() - 6) * 1000)))
        assert late is not None
        assert late <= site.worker.loop.time() + 5 - 4 + 0.01


async def test_a_run_that_ends_at_its_deadline(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        _, delivery = site.deliver("pass", 1, timeout_ms=20)
        reply = await delivery.the_reply()
        assert reply.status == Status.TIMED_OUT
        assert wire.ending(reply).message.startswith("task 'pass'")
        assert gate.cancelled == [1]
        assert site.all_free()


async def test_a_value_after_a_cancellation_that_was_ignored_counts(namespace: str) -> None:
    @atask(name="stubborn", namespace=namespace)
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done anyway"
        return ""

    async with serving(namespace) as site:
        _, delivery = site.deliver("stubborn", timeout_ms=20)
        reply = await delivery.the_reply()
        assert (reply.status, pickle.loads(reply.payload)) == (Status.VALUE, "done anyway")


async def test_an_unknown_task_is_passed_on_or_answered(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        call, delivery = site.call("pas"), Recorded()
        site.worker.deliver(call, delivery)
        reply = await delivery.the_reply()
        assert reply.status == Status.UNKNOWN_TASK
        assert "did you mean 'pass'?" in wire.ending(reply).message
        changed = replace_call(call, seen=["w"])
        elsewhere = Recorded(elsewhere=changed)
        site.worker.deliver(replace_call(call, id="another"), elsewhere)
        with pytest.raises(AssertionError):
            await elsewhere.the_reply()
        assert elsewhere.endings == [("give_back", changed)]
        assert site.all_free()


def replace_call(call: Call, **changes: Any) -> Call:
    fields = {name: getattr(call, name) for name in Call.__struct_fields__}
    return Call(**{**fields, **changes, "id": changes.get("id", "another")})


async def test_a_worker_that_drains_gives_back_what_comes(namespace: str, gate: Gate) -> None:
    async with serving(namespace, redelivers=True) as site:
        call, running = site.deliver("pass", 1)
        await gate.until_inside(1)
        twice, unstarted = site.deliver("pass", 2)
        duplicate = Recorded()
        site.worker.deliver(twice, duplicate)
        drain = asyncio.create_task(site.worker.drain())
        assert sorted([await unstarted.how(), await duplicate.how()]) == ["drop", "give_back"]
        assert await site.deliver("pass", 3)[1].how() == "give_back"
        gate.open.set()
        assert (await running.the_reply()).id == call.id
        await drain
        assert gate.inside == [1]


@pytest.mark.parametrize(("delivery", "ending"), [(0, "give_back"), (AT_MOST_ONCE, "reply")])
async def test_a_drain_cuts_off_what_runs_after_the_grace(
    namespace: str, gate: Gate, delivery: int, ending: str
) -> None:
    async with serving(namespace) as site:
        _, running = site.deliver("pass", delivery=delivery)
        await gate.until_inside(1)
        await site.worker.drain(0.01)
        assert await running.how() == ending
        if ending == "reply":
            assert running.endings[0][1].status == Status.WORKER_LOST
        assert gate.cancelled == [None]


async def test_drains_are_one_drain(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        _, running = site.deliver("pass")
        await gate.until_inside(1)
        drains = [asyncio.create_task(site.worker.drain()) for _ in range(3)]
        waiting = asyncio.create_task(site.worker.wait())
        await asyncio.sleep(0)
        assert not any(drain.done() for drain in drains)
        gate.open.set()
        await asyncio.gather(*drains, waiting)
        await running.the_reply()


async def test_a_cancelled_drain_goes_on(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        _, running = site.deliver("pass")
        await gate.until_inside(1)
        drain = asyncio.create_task(site.worker.drain())
        await asyncio.sleep(0)
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        gate.open.set()
        await running.the_reply()
        await site.worker.wait()


async def test_a_lost_transport_is_told_to_who_waits(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(namespace) as site:
        site.worker.fail(atasks.TransportError("gone for good"))
        with pytest.raises(atasks.TransportError, match="gone for good"):
            await site.worker.wait()
    assert [record.levelno for record in calm(caplog.records)] == [logging.ERROR]


@pytest.mark.parametrize("option", ["concurrency", "max_parked"])
async def test_counts_are_checked(namespace: str, option: str) -> None:
    transport = LoopbackTransport(namespace)
    for value, error in ((0, ValueError), (True, TypeError), ("3", TypeError)):
        with pytest.raises(error, match=option):
            Worker(atasks.get_router(namespace), transport, **{option: value})


async def test_a_last_attempt_runs_alone(namespace: str, gate: Gate) -> None:
    async with serving(namespace, concurrency=3) as site:
        _, first = site.deliver("pass", 1)
        _, alone = site.deliver("pass", 2, alone=True)
        _, third = site.deliver("pass", 3)
        assert site.worker.alone
        await gate.until_inside(1)
        assert (gate.inside, site.worker.unstarted) == ([1], 2)
        gate.open.set()
        for delivery in (first, alone, third):
            await delivery.the_reply()
        assert gate.inside == [1, 2, 3]
        assert not site.worker.alone
        assert site.all_free()


async def test_a_last_attempt_that_is_cancelled_lets_others_start(namespace: str, gate: Gate) -> None:
    async with serving(namespace, concurrency=2) as site:
        _, first = site.deliver("pass", 1)
        call, alone = site.deliver("pass", 2, alone=True)
        _, third = site.deliver("pass", 3)
        site.worker.cancel(call.id)
        assert await alone.how() == "drop"
        await gate.until_inside(2)
        assert gate.inside == [1, 3]
        gate.open.set()
        await first.the_reply()
        await third.the_reply()
        assert site.all_free()


# -- the callback of minimal transports


async def test_answer(namespace: str) -> None:
    @atask(name="double", namespace=namespace)
    async def double(n: int) -> int:
        return 2 * n

    async with serving(namespace) as site:
        call = site.call("double", 4)
        (reply,) = wire.decode(await respond(site.worker, "double", wire.encode([call])))
        assert isinstance(reply, Reply)
        assert (reply.id, pickle.loads(reply.payload)) == (call.id, 8)


async def test_answer_to_what_is_not_a_request(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(namespace) as site:
        newer = msgpack_call(site.call("double"), v=9)
        for content, call_id, reason in [
            (b"\xc1 nonsense", "?", "not a message of wire version 1"),
            (wire.encode([]), "?", "a message of one Call"),
            (wire.encode([site.call("a"), site.call("b")]), "?", "a message of one Call"),
            (newer, "call-1", "wire version 9"),
        ]:
            (reply,) = wire.decode(await respond(site.worker, "double", content))
            assert isinstance(reply, Reply)
            assert (reply.id, reply.status) == (call_id, Status.DECODE_ERROR)
            assert reason in wire.ending(reply).message
        assert site.worker.bad_messages == 4
        assert len(calm(caplog.records)) == 1, "the first one is logged, and a flood of them is not"


def msgpack_call(call: Call, v: int) -> bytes:
    changed = Call(**{**{name: getattr(call, name) for name in Call.__struct_fields__}, "v": v})
    return wire.encode([changed])


async def test_a_cancelled_answer_cancels_the_run(namespace: str, gate: Gate) -> None:
    async with serving(namespace) as site:
        answer = asyncio.create_task(respond(site.worker, "pass", wire.encode([site.call("pass", 1)])))
        await gate.until_inside(1)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        _, next_one = site.deliver("pass", 2)
        gate.open.set()
        await next_one.the_reply()
        assert gate.cancelled == [1]
        assert site.all_free()


async def test_answer_after_the_drain(namespace: str, gate: Gate) -> None:
    """A callback that a transport kept is answered at once, and the call does not run."""
    async with serving(namespace) as site:
        await site.worker.drain(0)
        (reply,) = wire.decode(await respond(site.worker, "pass", wire.encode([site.call("pass", 1)])))
        assert isinstance(reply, Reply)
        assert reply.status == Status.WORKER_LOST
        assert gate.inside == []


class Unshown(Exception):
    """Raises for whatever it is asked: logging its traceback does so too."""

    def __init__(self, ends: bool) -> None:
        vars(BaseException)["args"].__set__(self, (ends,))

    def __getattribute__(self, name: str) -> Any:
        (ends,) = vars(BaseException)["args"].__get__(self)
        raise SystemExit(3) if ends else ValueError(name)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("executor", [None, "thread"])
async def test_an_exception_that_cannot_be_looked_at_ends_its_own_call_alone(
    namespace: str, ends: bool, executor: Any
) -> None:
    """Such an exception would keep the call from ending, and its slot, or end the program."""

    async def wrong() -> None:
        raise Unshown(ends)

    def blocking() -> None:
        raise Unshown(ends)

    atask(blocking if executor else wrong, name="wrong", executor=executor, namespace=namespace)

    @atask(name="right", namespace=namespace)
    async def right() -> int:
        return 1

    async with serving(namespace) as site:
        for _ in range(3):
            _, delivery = site.deliver("wrong")
            assert (await delivery.the_reply()).status in (Status.RAISED, Status.FAILED)
            _, delivery = site.deliver("right")
            assert (await delivery.the_reply()).status == Status.VALUE
        assert site.all_free()
