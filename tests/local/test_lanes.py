"""The way of shared memory between processes: without it, without descriptors, and with a peer that meddles."""

# Private attributes: none.

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec import structs

from atasks import DecodeError
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.codecs.pieces import SHARED_BYTES, SHARES, Pieces, Shared
from atasks.testing import until
from atasks.transport.backends.local import link as links
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.lane import LOST, Lane
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import PROTOCOL, Deliver, Hello, Request, Serve, Slots, Welcome
from atasks.transport.backends.local.transport import LocalTransport
from atasks.worker.outcome import decode_arguments
from tests.faults.history import settled
from tests.local.around_hub import of
from tests.local.test_shared_memory import shared_call, sharing
from tests.waiting import DEADLINE

pytestmark = pytest.mark.skipif(not SHARES, reason="needs memory without a name, which Linux has")


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, before[1]))
    taken: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many"):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


def fail(*_: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("what", ["socketpair", "sendmsg"])
async def test_without_a_lane_a_caller_connects_again(
    what: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await Host.open(path)
    transport = LocalTransport(path, "again", hub=False)
    await transport.connect()
    try:
        assert transport.shares
        await host.close()
        if what == "socketpair":
            monkeypatch.setattr(socket, "socketpair", fail)
        else:
            monkeypatch.setattr(socket.socket, "sendmsg", fail)
        host = await Host.open(path)
        await until(lambda: host.hub.peers and host.hub.peers[0].namespace == "again", "it is there again")
        assert await asyncio.wait_for(transport.queue_states(["q"]), DEADLINE) is not None
        assert not transport.shares
    finally:
        await transport.disconnect()
        await host.close()


async def test_a_hub_without_descriptors_goes_without_a_lane(host: Host, path: str) -> None:
    received: list[object] = []
    _, here = await asyncio.get_running_loop().create_unix_connection(SocketLink, path)
    here.receive = received.extend
    await until(lambda: host.hub.peers, "the hub has accepted it")
    here.greet(Hello(PROTOCOL, "default", os.getpid(), True))
    with no_descriptors():
        await until(lambda: received or here.closed, "it is welcome")
    assert received == [Welcome(os.getpid(), True, False)]
    here.abort()
    await settled(here.ended, "the end")


async def test_a_lack_of_descriptors_costs_a_payload(host: Host, path: str) -> None:
    async with sharing(path) as (caller, _), sharing(path) as (worker, received):
        worker.send(Serve("w", ["q"]))
        worker.send(Slots(2, 0))
        content = os.urandom(SHARED_BYTES)
        lost, kept = (structs.replace(shared_call(content, content), id=each) for each in ("lost", "kept"))
        with no_descriptors():
            caller.send(Request("q", lost), len(lost.payload))
            await until(lambda: of(received, Deliver) or caller.closed, "it has come")
        caller.send(Request("q", kept), len(kept.payload))
        await until(lambda: len(of(received, Deliver)) == 2 or caller.closed, "the other has come")
        found = [each.call for each in received if isinstance(each, Deliver)]
        assert [(each.id, bytes(each.payload)) for each in found] == [
            ("lost", LOST),
            ("kept", b"small" + content + b"small" + content),
        ]
        with pytest.raises(DecodeError, match="load key"):
            await decode_arguments(structs.replace(found[0], codec="cloudpickle"), CloudpickleCodec("lost"), len)
        received.clear()
        del lost, kept, found


@pytest.mark.parametrize("direction", ["take", "send"])
def test_a_peer_makes_nobody_wait(direction: str) -> None:
    """The peer has this end of the lane too, and has it wait."""
    ours, theirs = socket.socketpair()
    lane = Lane(ours)
    fcntl.fcntl(ours, fcntl.F_SETFL, fcntl.fcntl(ours, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    found: list[str] = []

    def use() -> None:
        payload = Pieces([Shared.copy(b"x")])
        try:
            if direction == "take":
                lane.take()
            while lane.send(payload):
                pass
            found.append("full")
        except BlockingIOError:
            found.append("nothing there")

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(20)
    waits = thread.is_alive()
    theirs.close()  # it ends the waiting
    thread.join()
    lane.close()
    assert not waits
    assert found == ["nothing there" if direction == "take" else "full"]


async def test_a_message_that_cannot_be_encoded_leaves_nothing_on_the_lane(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(path) as (caller, _), sharing(path) as (worker, received):
        worker.send(Serve("w", ["q"]))
        worker.send(Slots(2, 0))
        worker.flush()
        bad, good = shared_call(os.urandom(SHARED_BYTES)), shared_call(content := os.urandom(SHARED_BYTES + 1))
        with monkeypatch.context() as patched:
            patched.setattr(links, "encode", fail)
            with pytest.raises(OSError, match="Too many"):
                caller.send(Request("q", bad), len(bad.payload))
        caller.send(Request("q", good), len(good.payload))
        await until(lambda: of(received, Deliver) or caller.closed, "the other has come")
        (found,) = (each.call for each in received if isinstance(each, Deliver))
        assert bytes(found.payload) == b"small" + content
        received.clear()
        del bad, good, found
