"""Processes that are slow to read cost the hub no memory without a bound, and the others no time."""

# Private attributes: `LocalTransport._host` leads to the hub of this process, whose size and peers are looked at.

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

import atasks
from atasks.testing import until
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.link import SocketLink
from tests.faults.history import settled
from tests.faults.processes import Process
from tests.local.clients import SENT
from tests.local.jobs import NAMESPACE, echo, make, take

pytestmark = pytest.mark.timeout(180)

MIB = 2**20


class Client(Process):
    """A process that makes calls with large results."""

    def __init__(self, url: str, count: int, size: int) -> None:
        super().__init__("tests.local.clients", url, str(count), str(size))


@pytest.fixture
async def server(path: str, no_leaked_tasks: None) -> AsyncIterator[LocalTransport]:
    """A hub in this process, and a worker process of ten slots."""
    options = {"hub": True, "workers": 1, "concurrency": 10}
    async with atasks.connect(f"unix://{path}", namespace=NAMESPACE, **options) as transport:
        assert isinstance(transport, LocalTransport)
        yield transport


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    clients: list[Client] = []
    yield clients
    for client in clients:
        print(client.output)
        client.close()


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def buffered(transport: LocalTransport) -> int:
    """Bytes that the hub holds for processes that do not read them."""
    assert transport._host is not None
    links = [peer.link for peer in transport._host.hub.peers]
    return sum(link.unsent for link in links if isinstance(link, SocketLink))


async def test_a_client_that_stops_reading(server: LocalTransport, path: str, clients: list[Client]) -> None:
    before = resident()
    client = Client(f"unix://{path}", 400, 2 * MIB)  # 800 MiB of replies
    clients.append(client)
    await until(lambda: SENT in client.output, "it has made its calls", 60)
    client.signal(signal.SIGSTOP)
    ended = await settled(asyncio.gather(*(echo(number) for number in range(500))), "calls of another caller", 60)
    assert ended == list(range(500))
    assert resident() - before < 250 * MIB
    client.signal(signal.SIGCONT)
    assert await asyncio.to_thread(client.wait) == 0
    assert str(400 * 2 * MIB) in client.output


async def test_a_worker_that_stops_reading(path: str) -> None:
    async with atasks.local(workers=1, namespace=NAMESPACE) as transport:
        assert isinstance(transport, LocalTransport)
        assert transport.worker_processes is not None
        (worker,) = transport.worker_processes.pids
        os.kill(worker, signal.SIGSTOP)
        content = b"x" * MIB
        calls = [asyncio.create_task(take(content)) for _ in range(300)]
        done, _ = await asyncio.wait(calls, timeout=1)
        assert done == set()
        assert 0 < buffered(transport) < 4 * MIB  # although it has 100 slots
        os.kill(worker, signal.SIGCONT)
        assert await settled(asyncio.gather(*calls), "300 calls", 60) == [MIB] * 300


async def test_callers_wait_while_the_hub_has_too_much_of_theirs(server: LocalTransport, path: str) -> None:
    """A hub in another process would be the same; here it can be looked at."""
    assert server._host is not None
    async with atasks.connect(f"unix://{path}", namespace=NAMESPACE, queue="nobody-serves-it"):
        content = b"x" * MIB
        calls = [asyncio.create_task(take(content)) for _ in range(300)]
        await until(lambda: len(server._host.hub) >= 64, "64 MiB wait at the hub")  # type: ignore[union-attr]
        await asyncio.wait(calls, timeout=0.5)
        assert len(server._host.hub) < 200
        with pytest.raises(atasks.CallTimeout):
            await settled(take.options(timeout=0.2)(content), "a call that waits for its turn")
        # Whoever waits has a deadline of its own, and whoever else calls is not held up.
        async with atasks.connect(f"unix://{path}", namespace=NAMESPACE):
            assert await settled(make(10), "a call of another caller") == b"x" * 10
        async with atasks.serve(f"unix://{path}", namespace=NAMESPACE, hub=False, queues=["nobody-serves-it"]):
            assert await settled(asyncio.gather(*calls), "300 calls", 60) == [MIB] * 300
    assert len(server._host.hub) == 0
