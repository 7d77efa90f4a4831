"""The dead queue, for people: nothing in it is lost by looking at it."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from atasks import MsgpackCodec, Transport
from atasks.testing import Site, soon
from atasks.tracking.fleet import Fleet
from atasks.tracking.steering import DeadMessage
from atasks.transport.backends.amqp.dead import Copy
from atasks.transport.backends.amqp.worker.dead_letters import BYTES, cut_from
from atasks.transport.call_transport import CallTransport
from tests.amqp.peer import Peer
from tests.amqp.test_bad_messages import call
from tests.broker import Broker
from tests.cli.command import Command, Done

HOSTILE = b"\x1b[2J\x1b]0;owned\x07\xff\x00 not readable"
HOLD = """
import asyncio, sys
import atasks
from atasks.tracking.fleet import Fleet

async def main(url, namespace, prefix):
    async with atasks.connect(url, namespace=namespace, prefix=prefix) as transport:
        async with Fleet(transport).dead_letters() as dead:
            print(len(dead.messages), transport.session.reply_queue, flush=True)
            await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


RETRY = """
import asyncio, os, signal, sys
import atasks
from atasks.tracking.fleet import Fleet
from atasks.transport.backends.amqp.dead import Copy

confirmed, left = Copy.confirmed, [100]

def until_killed(copy):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    confirmed(copy)

Copy.confirmed = until_killed

async def main(url, namespace, prefix):
    async with atasks.connect(url, namespace=namespace, prefix=prefix) as transport:
        print(transport.session.reply_queue, flush=True)
        async with Fleet(transport).dead_letters() as dead:
            await dead.retry(dead.messages)

asyncio.run(main(*sys.argv[1:]))
"""


def steering(transport: Transport) -> Fleet:
    assert isinstance(transport, CallTransport)
    return Fleet(transport)


async def count(fleet: Fleet, expected: int) -> None:
    """Return when so many dead messages are ready."""
    async with asyncio.timeout(30):
        while await fleet.dead_count() != expected:
            await asyncio.sleep(0.01)


async def fill(fleet: Fleet, peer: Peer) -> list[DeadMessage]:
    """Have two messages die: one that cannot be read, and a call whose caller has no address."""
    await peer.publish(HOSTILE)
    await count(fleet, 1)
    await peer.send(call("an-id", "ec\x1bho"), reply_to=None)
    await count(fleet, 2)
    async with fleet.dead_letters() as dead:
        return list(dead.messages)


@pytest.fixture
def ran(site: Site) -> asyncio.Queue[str]:
    """The arguments of the calls that came back and ran."""
    MsgpackCodec(site.namespace)
    found: asyncio.Queue[str] = asyncio.Queue()

    @site.atask(name="ec\x1bho")
    async def echo() -> None:
        found.put_nowait("ran")

    return found


async def test_what_is_retried_and_dropped(
    site: Site, peer: Peer, ran: asyncio.Queue[str], amqp_url: str, prefix: str, tmp_path: Path
) -> None:
    where = ("--url", amqp_url, "--prefix", prefix, "--namespace", site.namespace)

    async def dead(*arguments: str, code: int = 0) -> Done:
        done = await asyncio.to_thread(lambda: Command("dead", *arguments, *where, cwd=tmp_path).finish())
        assert done.code == code, done
        return done

    async with site.open():
        fleet = steering(site.caller)
        unreadable, orphan = await fill(fleet, peer)
        assert (unreadable.queue, unreadable.reason, unreadable.size, unreadable.tasks, unreadable.ids) == (
            peer.work_queue(),
            "rejected",
            len(HOSTILE),
            [],
            [],
        )
        assert (orphan.tasks, orphan.ids) == (["ec\x1bho"], ["an-id"])
        assert unreadable.at is not None

        listed = await dead()
        assert [line.split()[0] for line in listed.out.splitlines()] == ["N", "1", "2"]
        assert "ec?ho" in listed.out
        shown = await dead("show", "1", "--payload")
        assert "\\x1b[2J\\x1b]0;owned\\x07\\xff\\x00 not readable" in shown.out
        assert "\x1b" not in listed.out + shown.out
        (found,) = json.loads((await dead("show", unreadable.name, "--payload", "--json")).out)["messages"]
        assert base64.b64decode(found["payload"]) == HOSTILE
        await count(fleet, 2)

        assert (await dead("drop", "1", code=2)).line().endswith("Nobody is here to ask: add --yes")
        assert (await dead("retry", "7", code=1)).line().startswith("there is no message '7'")
        retried = json.loads((await dead("retry", orphan.name, "--json")).out)
        assert retried == {"retried": [2], "left": []}
        assert await asyncio.wait_for(ran.get(), 30) == "ran"
        assert (await dead("drop", "--all", "--yes")).out == "dropped: 1 message\n"
        await count(fleet, 0)


@pytest.mark.parametrize("size", [-1, 0, True, 1.5, "5", None, [5]], ids=str)
def test_a_size_that_makes_no_sense_cuts_nothing(size: Any) -> None:
    assert cut_from({BYTES: size}) == 0
    assert cut_from({BYTES: 5}) == 5


async def test_what_cannot_be_retried_stays(
    site: Site, peer: Peer, ran: asyncio.Queue[str], amqp_url: str, prefix: str
) -> None:
    async with site.open():
        fleet = steering(site.caller)
        await peer.publish(HOSTILE, f"{prefix}.dead")  # nobody says where it comes from
        await peer.publish(HOSTILE, f"{prefix}.dead", headers={"x-first-death-queue": f"{prefix}.nowhere"})
        await peer.publish(HOSTILE, f"{prefix}.dead", headers={"x-death": [1], "x-first-death-queue": 5})
        await count(fleet, 3)
        await peer.publish(bytes(3 * 2**20))  # of which the beginning is kept
        await count(fleet, 4)
        long = "q" * 252 + "ü\x1b"
        await peer.publish(HOSTILE, f"{prefix}.dead", headers={"x-first-death-queue": long})
        headers = {"x-first-death-queue": f"{prefix}.nowhere", "x-message-id": long + "!"}
        await peer.publish(HOSTILE, f"{prefix}.dead", headers=headers)
        await peer.publish(HOSTILE, f"{prefix}.dead", headers={"x-first-death-queue": "q" * 256})
        await count(fleet, 7)
        async with fleet.dead_letters() as dead:
            problems = list((await dead.retry(dead.messages)).values())
            assert dead.messages[3].size == len(dead.messages[3].body) == 256 * 2**10
        assert problems[0] == problems[2] == "nobody noted which queue it came from: drop it"
        assert problems[1] == f"there is no queue {prefix}.nowhere: start a worker for it first"
        assert problems[3] == f"it is the beginning of a message of {3 * 2**20} bytes: drop it"
        assert problems[4] == f"there is no queue {long}: start a worker for it first"
        assert problems[5] == f"its id has 256 bytes, and the broker takes 255: drop it ({long[:60]!r}...)"
        assert (
            problems[6]
            == f"the name of its queue has 256 bytes, and the broker takes 255: drop it ({'q' * 60!r}...)"
        )
        await count(fleet, 7)
        async with fleet.dead_letters() as dead:
            for message in list(dead.messages):
                await dead.drop(message)


async def test_nothing_is_lost_when_who_looks_is_killed(
    site: Site, peer: Peer, ran: asyncio.Queue[str], amqp_url: str, prefix: str, broker: Broker
) -> None:
    async with site.open():
        fleet = steering(site.caller)
        before = await fill(fleet, peer)
        looking = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLD, amqp_url, site.namespace, prefix, stdout=asyncio.subprocess.PIPE
        )
        assert looking.stdout is not None
        number, reply_queue = (await looking.stdout.readline()).decode().split()
        assert number == "2"
        await count(fleet, 0)
        looking.kill()
        await looking.communicate()
        with broker.channel() as channel:  # it would expire in five minutes
            channel.queue_delete(reply_queue)
        await count(fleet, 2)
        async with fleet.dead_letters() as dead:
            assert [message.name for message in dead.messages] == [message.name for message in before]
            for message in list(dead.messages):
                await dead.drop(message)


async def _bury(peer: Peer, prefix: str, *ids: str, queue: str) -> None:
    """Put messages of these ids into the dead queue, as if they had come from that one."""
    for name in ids:
        headers = {"x-first-death-queue": queue}
        await peer.publish(HOSTILE, f"{prefix}.dead", headers=headers, message_id=name)


def _taken(broker: Broker, queue: str) -> list[str]:
    """Take all messages of a queue, and return their ids."""
    with broker.channel() as channel:
        found: list[str] = []
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(got[1].message_id)
        return found


async def test_many_are_on_their_way_back_at_a_time(
    site: Site, peer: Peer, prefix: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confirms come when all copies have left."""
    home, names, told = f"{prefix}.home", [f"id-{n}" for n in range(50)], []
    confirmed = Copy.confirmed

    def late(copy: Copy) -> None:
        told.append(copy)
        if len(told) == len(names):
            for each in told:
                confirmed(each)

    async with site.open():
        fleet = steering(site.caller)
        await peer.channel.declare_queue(home)
        await _bury(peer, prefix, *names, queue=home)
        await count(fleet, len(names))
        async with fleet.dead_letters() as dead:
            monkeypatch.setattr(Copy, "confirmed", late)
            assert await soon(dead.retry(dead.messages)) == {}
            assert not dead.messages
        assert (await fleet.dead_count(), _taken(broker, home)) == (0, names)
        await peer.channel.queue_delete(home)


async def test_messages_of_one_id_are_told_apart(site: Site, peer: Peer, prefix: str, broker: Broker) -> None:
    """The broker tells of one that it returns by its id alone."""
    home = f"{prefix}.home"
    async with site.open():
        fleet = steering(site.caller)
        await peer.channel.declare_queue(home)
        for queue in (home, f"{prefix}.nowhere") * 10:
            await _bury(peer, prefix, "one", queue=queue)
        await count(fleet, 20)
        async with fleet.dead_letters() as dead:
            assert list(await soon(dead.retry(dead.messages))) == list(range(2, 21, 2))
            assert {message.queue for message in dead.messages} == {f"{prefix}.nowhere"}
        await count(fleet, 10)
        assert _taken(broker, home) == ["one"] * 10
        _taken(broker, f"{prefix}.dead")
        await peer.channel.queue_delete(home)


async def test_many_messages_of_one_id_cost_no_more_each(
    site: Site, peer: Peer, prefix: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each leaves when the one before it has ended, and wakes no other one."""
    home, loop, steps = f"{prefix}.home", asyncio.get_running_loop(), 0
    call_soon = loop.call_soon

    def counted(*arguments: Any, **options: Any) -> asyncio.Handle:
        nonlocal steps
        steps += 1
        return call_soon(*arguments, **options)

    async with site.open():
        fleet = steering(site.caller)
        await peer.channel.declare_queue(home)
        await _bury(peer, prefix, *["one"] * 200, queue=home)
        await count(fleet, 200)
        async with fleet.dead_letters() as dead:
            monkeypatch.setattr(loop, "call_soon", counted)
            assert await soon(dead.retry(dead.messages)) == {}
            monkeypatch.undo()
        assert steps < 50 * 200
        assert _taken(broker, home) == ["one"] * 200
        await peer.channel.queue_delete(home)


async def test_messages_are_forgotten_when_nobody_looks_any_more(site: Site, peer: Peer, prefix: str) -> None:
    """They may have many bytes, and the connection stays."""
    async with site.open():
        fleet = steering(site.caller)
        await _bury(peer, prefix, "one", queue="nowhere")
        await count(fleet, 1)
        async with fleet.dead_letters() as dead:
            looked_at = weakref.ref(dead)
            await dead.drop(dead.messages[0])
        del dead
        gc.collect()
        assert looked_at() is None


async def test_nothing_is_lost_when_who_retries_is_killed(
    site: Site, peer: Peer, amqp_url: str, prefix: str, broker: Broker
) -> None:
    home, names = f"{prefix}.home", [f"id-{n}" for n in range(300)]
    async with site.open():
        fleet = steering(site.caller)
        await peer.channel.declare_queue(home)
        await _bury(peer, prefix, *names, queue=home)
        await count(fleet, len(names))
        retrying = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RETRY, amqp_url, site.namespace, prefix, stdout=asyncio.subprocess.PIPE
        )
        assert retrying.stdout is not None
        reply_queue = (await retrying.stdout.readline()).decode().strip()
        assert await retrying.wait() == -signal.SIGKILL
        await retrying.communicate()
        with broker.channel() as channel:  # it would expire in five minutes
            channel.queue_delete(reply_queue)
        back, left = set[str](), set[str]()
        async with asyncio.timeout(60):  # the broker has all again that were not confirmed, once it has read all
            while left.union(back) != set(names) or len(left) <= len(names) - 100:
                back.update(_taken(broker, home))
                left.update(_taken(broker, f"{prefix}.dead"))
                await asyncio.sleep(0.05)
        assert len(back) >= 100
        await peer.channel.queue_delete(home)
