"""Fixtures for every test, and checks of every test.

A test that ends with a pending asyncio task, a running thread or a child process that was not there when
it began fails, and so does one that leaves a reply queue at the broker (where it uses `amqp_leaks`).
"""

# Private attributes: `_resource_tracker`, `_forkserver` and their `_pid` and `_forkserver_pid`: the standard
# library starts these processes by itself, and tells of them nowhere else.

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil
import pytest

from atasks.current import carried
from atasks.fork_server import server as fork_server
from tests.broker import Broker, BrokerError, choose
from tests.brokers.postgres import Postgres
from tests.brokers.postgres import choose as choose_postgres
from tests.brokers.private_node import PrivateNode, find_sbin, own_processes
from tests.brokers.shared_node import SharedNode

# A shell starts what it runs in the background with SIGINT ignored, and so would be what the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

GRACE = 20.0
"""Seconds in which what a test has told to end may do so: on a busy machine a process takes some."""


def pytest_collection_finish() -> None:
    """Keep the collector of garbage away from the thousands of tests themselves.

    Each full collection would walk all of them, for a third of a second and more, in the middle of a test's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_more_is_carried() -> Iterator[None]:
    """Stop carrying, after each test, the context variables that it made travel with calls."""
    before = dict(carried)
    yield
    carried.clear()
    carried.update(before)


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker of this run, started when the first test asks for it.

    The worker processes of pytest-xdist share one: a test must leave alone what is not its own.
    """
    broker = choose()
    if isinstance(broker, PrivateNode) and hasattr(request.config, "workerinput"):
        broker = SharedNode(broker.sbin, tmp_path_factory.getbasetemp().parent)
    broker.start()
    yield broker
    _close(broker, request)


@pytest.fixture(scope="session")
def controllable_broker(broker: Broker, request: pytest.FixtureRequest) -> Iterator[Broker]:
    """`broker` if it can be asked, else a private node beside it: for tests that ask what AMQP does not tell."""
    if broker.controllable:
        yield broker
    else:
        own: Broker = request.getfixturevalue("own_broker")
        own.start()
        yield own


@pytest.fixture(scope="session")
def own_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker that a test may stop, kill and restart: no other process uses it. `start()` it at first."""
    broker = choose()
    if not broker.stoppable:
        sbin = find_sbin()
        if sbin is None:
            raise BrokerError(
                "this test stops the broker, which was given: install rabbitmq-server for a private one"
            )
        broker = PrivateNode(sbin)
    yield broker
    _close(broker, request)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """The PostgreSQL of this process, started when the first test asks for it."""
    parallel = hasattr(request.config, "workerinput")
    database = choose_postgres(tmp_path_factory.getbasetemp().parent if parallel else None)
    database.start()
    yield database
    database.close()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The URL of the running database."""
    return postgres.url


def _close(broker: Broker, request: pytest.FixtureRequest) -> None:
    """End it. If a test has failed, its logs are kept."""
    if request.session.testsfailed and broker.controllable:
        logs = request.config.rootpath / ".broker-logs"
        broker.close(logs)
        print(f"\nTests failed: the broker's logs are kept in {logs}")
    else:
        broker.close()


@pytest.fixture
def amqp_url(broker: Broker) -> str:
    """The URL of the running broker."""
    return broker.url


@pytest.fixture
def prefix() -> str:
    """A prefix for this test's queues and exchanges that no other test has."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def amqp_leaks(broker: Broker, amqp_url: str, prefix: str) -> Iterator[None]:
    """Holds the test to leaving no reply queue of its prefix, and removes what workers leave there on purpose.

    Whatever connects in the test must end before this: make fixtures that connect depend on it. A broker that was
    given cannot list its queues: there nothing is checked, and what workers leave stays.
    """
    yield
    if not broker.controllable:
        return
    leaked = [name for name in broker.clear(prefix) if name.startswith(f"{prefix}.r.")]
    if leaked:
        pytest.fail(f"reply queues left at the broker: {leaked}")


def child_ids() -> set[int]:
    """The ids of this process's children, and of those that its fork server has forked, those that have ended and
    were not waited for included."""
    parents = [Path("/proc/self/task"), *(Path(f"/proc/{pid}/task") for pid in fork_server.pids())]
    try:
        tasks = [task for parent in parents if parent.exists() for task in parent.iterdir()]
        return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    except OSError:  # another system; or a thread that has ended just now
        found = psutil.Process().children()  # 4 ms: it looks at all processes
        servers = [each for each in found if each.pid in fork_server.pids()]
        return {process.pid for process in [*found, *(child for each in servers for child in each.children())]}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Holds every test to leaving no thread or child process behind: its event loop has closed by then."""
    threads = set(threading.enumerate())
    processes = child_ids()
    yield
    problems = []
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon or thread.name == "atasks-thread":  # else a later test would be blamed for it
            thread.join(GRACE)
            if thread.is_alive():
                problems.append(f"thread {thread.name}")
    ours = {
        *processes,
        *own_processes,
        *fork_server.pids(),
        resource_tracker._resource_tracker._pid,
        forkserver._forkserver._forkserver_pid,
    }
    children = []
    for pid in child_ids() - ours:
        with contextlib.suppress(psutil.NoSuchProcess):  # a thread has just waited for it
            children.append(psutil.Process(pid))
    for child in psutil.wait_procs(children, timeout=GRACE if children else 0)[1]:
        with child.oneshot():
            problems.append(f"process {child.pid} ({child.status()}): {' '.join(child.cmdline())[:200]}")
        child.kill()
        child.wait()
    if problems:
        pytest.fail("left behind: " + "; ".join(sorted(problems)))


@pytest.fixture(autouse=True)
def no_leaks_of_async_tests(request: pytest.FixtureRequest, no_leaks: None) -> None:
    """Requests `no_leaked_tasks` where there is an event loop to look at."""
    if inspect.iscoroutinefunction(inspect.unwrap(request.function)):
        request.getfixturevalue("no_leaked_tasks")


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Holds a test to leaving no asyncio task pending. Set up before every async fixture, it ends after them."""
    before = asyncio.all_tasks()
    yield
    tasks = asyncio.all_tasks() - before - {asyncio.current_task()}
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=GRACE)
        if pending:
            pytest.fail(f"asyncio tasks left pending: {sorted(map(repr, pending))}")
