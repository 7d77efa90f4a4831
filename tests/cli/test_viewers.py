"""Many who look at a fleet, and whose processes are killed or stopped while they look."""

from __future__ import annotations

import asyncio
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from urllib.parse import urlsplit

import psutil
import pytest

import atasks
from atasks import atask
from tests.broker import Broker
from tests.brokers.ports import free_ports
from tests.cli.command import PATIENCE, Command
from tests.cli.fleet import FleetOfTwo
from tests.waiting import wait_until

VIEWERS = 6
WARM_CALLS = 1000
"""Calls after which a worker has taken the memory that calls alone cost it."""
GROWTH = 8 * 2**20
"""Bytes by which the memory of a worker may differ without a reason."""


@pytest.fixture
def two(broker: Broker, tmp_path: Path) -> Iterator[FleetOfTwo]:
    url = broker.add_vhost()
    fleet = FleetOfTwo(tmp_path, url, f"cli-{uuid.uuid4().hex}")
    yield fleet
    fleet.close()
    broker.remove_vhost(url)


class Viewers:
    """Commands that look at the fleet, and browsers' connections to those of them that are pages."""

    def __init__(self, two: FleetOfTwo, number: int) -> None:
        self._streams: list[HTTPResponse] = []
        self.commands: list[Command] = []
        for port in free_ports(1):
            page = two.shell.start("web", "--namespace", two.namespace, "--port", str(port), env=two.env)
            page.wait_for("page at")
            self._streams.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/stream", timeout=PATIENCE))
            self.commands.append(page)
        tops = [two.start("top") for _ in range(number // 2)]
        self.watching = number - len(tops)
        """Those that get events: `top` asks for counts alone."""
        self.commands += [two.start("watch", "--json") for _ in range(self.watching - len(self.commands))]
        wait_until(lambda: all(top.out for top in tops), "they show something: they are nice to others", 120)
        self.commands += tops

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class Left:
    """The queues, the exchange and the bindings of those who look."""

    def __init__(self, broker: Broker, url: str) -> None:
        self._broker = broker
        self._vhost = urlsplit(url).path.removeprefix("/")

    def queues(self) -> dict[str, int]:
        """The queues of those who look, and how many events wait there."""
        return {item.name: item.messages for item in self._broker.queues(self._vhost) if ".w." in item.name}

    def elsewhere(self) -> list[str]:
        """The exchange of events, and its bindings."""
        listed = [
            self._broker.ctl(f"list_{what}", "--silent", "--vhost", self._vhost, column).split()
            for what, column in (("exchanges", "name"), ("bindings", "source_name"))
        ]
        return [name for names in listed for name in names if name.endswith(".watch")]


def sizes(two: FleetOfTwo) -> list[tuple[int, int, int]]:
    """Bytes of memory, open files and threads of each worker."""
    workers = [psutil.Process(worker.process.pid) for worker in two.workers]
    return [(each.memory_info().rss, each.num_fds(), each.num_threads()) for each in workers]


@pytest.mark.timeout(300)  # viewers give way to everything else, so they begin late on a busy machine
async def test_viewers_that_are_killed_or_stopped_leave_nothing(two: FleetOfTwo, broker: Broker) -> None:
    @atask(namespace=two.namespace, name="shop.add")
    async def add(a: int, b: int = 1) -> int: ...

    async def call(times: int) -> None:
        for start in range(0, times, 50):
            numbers = range(start, start + 50)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.gather(*map(add, numbers)) == [n + 1 for n in numbers]

    left = Left(broker, two.env["ATASKS_URL"])
    async with atasks.connect(two.env["ATASKS_URL"], namespace=two.namespace):
        await call(WARM_CALLS)
        before = sizes(two)
        viewers = await asyncio.to_thread(Viewers, two, VIEWERS)
        try:
            async with asyncio.timeout(120):
                while len(await asyncio.to_thread(left.queues)) < viewers.watching:
                    await call(50)
            for number, command in enumerate(viewers.commands):
                command.signal(SIGSTOP if number % 2 else SIGKILL)
            await call(WARM_CALLS)  # nobody waits for those who are stopped
            async with asyncio.timeout(PATIENCE):  # the broker hears of the killed ones from their sockets
                while len(await asyncio.to_thread(left.queues)) > viewers.watching // 2:
                    await asyncio.sleep(0.2)
            assert len(await asyncio.to_thread(left.queues)) == viewers.watching // 2, (
                "those of the stopped ones stay"
            )
            async with asyncio.timeout(PATIENCE):  # once their leases are over, nothing is sent to who is stopped
                waiting: dict[str, int] = {}
                while (found := await asyncio.to_thread(left.queues)) != waiting:
                    waiting = found
                    await call(WARM_CALLS)
        finally:
            viewers.close()
            for command in viewers.commands:
                command.signal(SIGKILL)
        await call(WARM_CALLS)
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(left.queues):
                await asyncio.sleep(0.2)
        assert await asyncio.to_thread(left.elsewhere) == []
        for (memory, files, threads), (memory_before, files_before, threads_before) in zip(
            sizes(two), before, strict=True
        ):
            assert (files, threads) == (files_before, threads_before)
            assert memory - memory_before < GROWTH, "a worker has grown"
