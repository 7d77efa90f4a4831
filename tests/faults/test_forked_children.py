"""Children that a worker has forked: they neither hide its death nor share its signals."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import atasks
from atasks.testing import until
from tests.broker import Broker
from tests.faults.forking import (
    NAMESPACE,
    WAYS,
    children_of,
    fork_and_stay,
    handlers,
    pool_in,
    terminate_child,
)
from tests.faults.history import settled
from tests.faults.processes import Process
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PROMPTLY = 8.0
"""Seconds in which a death is noticed, and the call has run elsewhere; a child lives for longer."""
PLACES = ["crew", "command", "unix", "amqp"]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The folder where children leave their marks; they are ended with the test."""
    yield tmp_path
    for child in children_of(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="at-"))
    yield directory
    shutil.rmtree(directory)


@asynccontextmanager
async def crew() -> AsyncIterator[None]:
    async with atasks.local(workers=1, namespace=NAMESPACE):
        yield


@asynccontextmanager
async def unix(short: Path) -> AsyncIterator[None]:
    """The hub is here, and no supervisor knows the workers."""
    url = f"unix://{short}/hub.sock"
    async with atasks.connect(url, namespace=NAMESPACE, hub=True):
        workers = [Process("tests.faults.forking", url, '{"hub": false}') for _ in range(2)]
        try:
            yield
        finally:
            close(workers)


@asynccontextmanager
async def command(short: Path) -> AsyncIterator[None]:
    """The hub is in the supervisor of the command line."""
    url = f"unix://{short}/hub.sock"
    arguments = ["run", "tests.faults.forking", "--mode", "server", "--url", url, "--namespace", NAMESPACE]
    server = Process("atasks", *arguments, "--workers", "1")
    try:
        await until(lambda: "Ctrl-C to drain" in server.output, "the server serves")
        async with atasks.connect(url, namespace=NAMESPACE):
            yield
    finally:
        close([server])


def close(processes: list[Process]) -> None:
    for process in processes:
        print(process.output)
        process.close()


@asynccontextmanager
async def amqp(broker: Broker, prefix: str) -> AsyncIterator[None]:
    workers = [Process("tests.faults.forking", broker.url, f'{{"prefix": "{prefix}"}}') for _ in range(2)]
    try:
        async with atasks.connect(broker.url, namespace=NAMESPACE, prefix=prefix):
            yield
    finally:
        close(workers)


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, short: Path) -> AsyncIterator[str]:
    """Workers in processes of their own, and a connection to them."""
    match request.param:
        case "crew":
            manager: Any = crew()
        case "unix":
            manager = unix(short)
        case "command":
            manager = command(short)
        case _:
            manager = amqp(request.getfixturevalue("broker"), request.getfixturevalue("prefix"))
    async with manager:
        yield request.param


def worker_of(directory: Path) -> int | None:
    marks = list(directory.glob("worker.*"))
    return int(marks[0].suffix[1:]) if marks else None


@pytest.mark.parametrize(
    ("place", "way"),
    [
        ("command", "library"),
        *(("crew", way) for way in WAYS),
        *((place, way) for place in PLACES[1:] for way in ("os", "executor")),
    ],
    indirect=["place"],
)
async def test_a_child_does_not_hide_the_death_of_its_worker(place: str, way: str, directory: Path) -> None:
    call = asyncio.create_task(fork_and_stay(str(directory), way))
    await until(lambda: worker_of(directory) and children_of(directory), "a worker has a child")
    worker = worker_of(directory)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    assert await settled(call, "the call runs again", PROMPTLY) == 2
    assert time.monotonic() - killed < PROMPTLY
    assert all(psutil.pid_exists(child) for child in children_of(directory)), "they live"


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_child_can_be_terminated(place: str) -> None:
    assert await settled(terminate_child(), "a child is terminated") == -signal.SIGTERM
    assert await settled(handlers(), "a look at the handlers") == (True, -1)


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_a_busy_pool_can_be_left(executor: str) -> None:
    async with crew():
        assert await settled(pool_in[executor](), "a pool is left") < 5


PROGRAM = """\
import asyncio, os, sys, time
import atasks
from tests.faults.forking import NAMESPACE, _stay

async def main():
    async with atasks.local(workers=2, namespace=NAMESPACE) as transport:
        if os.fork() == 0:
            _stay(sys.argv[1])
            os._exit(0)
        print(*transport.worker_processes.pids, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_workers_of_a_killed_program_end_although_its_child_lives(directory: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(atasks.__file__).parent.parent,
    )
    assert program.stdout is not None
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 2
    wait_until(lambda: children_of(directory), "the program has a child")
    program.kill()
    program.wait()
    program.stdout.close()
    wait_until(lambda: not any(map(lives, workers)), "its workers are gone", 5)
    assert all(map(lives, children_of(directory)))


CHILDREN = """
    import asyncio, os, sys
    import atasks
    from atasks import atask

    def child(how: str) -> int:
        pid = os.fork()
        if not pid:
            if how == "exits":
                sys.exit(5)
            if how == "raises":
                raise ValueError("in the child")
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @atask
    async def in_the_loop(how: str) -> int:
        return child(how)

    @atask(executor="thread")
    def in_a_thread(how: str) -> int:
        return child(how)

    async def main():
        async with atasks.serve("loopback:"):
            for task in (in_the_loop, in_a_thread):
                print([await task(how) for how in ("exits", "raises", "returns")], flush=True)

    asyncio.run(main())
    """


def test_a_child_ends_where_its_call_ends(tmp_path: Path) -> None:
    """Without that the child would go on as a copy of its worker, and of the program around that."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(CHILDREN))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[5, 1, 0]\n[5, 1, 0]\n"), done.stderr
    assert done.stderr.count("ValueError: in the child") == 2
