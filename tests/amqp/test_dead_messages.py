"""The dead queue, for people: nothing in it is lost by looking at it."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path

import pytest

from atasks import MsgpackCodec, Transport
from atasks.testing import Site
from atasks.tracking.fleet import Fleet
from atasks.tracking.steering import DeadMessage
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
            problems = [await dead.retry(message) for message in list(dead.messages)]
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
