"""A broker that may be stopped, a proxy before it, workers that may be killed, and a record of what they did."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import atasks
from tests.broker import Broker
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.workers import Fleet


@pytest.fixture
def node(own_broker: Broker) -> Broker:
    """A running broker that the test may ask, stop and kill."""
    own_broker.start()
    return own_broker


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """The record of this test's awaits and runs."""
    history = History(tmp_path / "runs")
    with history.listening():
        yield history


@pytest.fixture
def cleanup(node: Broker, prefix: str) -> Iterator[None]:
    """Removes what the test left at the broker; reply queues of workers that were killed are among it."""
    yield
    node.start()
    node.clear(prefix)


@pytest.fixture
async def connected(node: Broker, prefix: str, cleanup: None, no_leaked_tasks: None) -> AsyncIterator[None]:
    """This process as a caller, over no proxy."""
    async with atasks.connect(node.url, prefix=prefix):
        yield


@pytest.fixture
def fleet(node: Broker, prefix: str, history: History, cleanup: None) -> Iterator[Fleet]:
    """Workers; those that still run at the end are ended."""
    fleet = Fleet(node, prefix, history.path)
    yield fleet
    logs = fleet.logs()
    fleet.close()
    print(logs)  # shown if the test failed


@pytest.fixture
def proxy(node: Broker) -> Iterator[Proxy]:
    """A proxy in front of the broker."""
    proxy = Proxy(node.url)
    yield proxy
    proxy.close()


@pytest.fixture
def second_proxy(node: Broker) -> Iterator[Proxy]:
    """Another one: for the workers, where `proxy` is for the caller."""
    proxy = Proxy(node.url)
    yield proxy
    proxy.close()


@pytest.fixture
def key() -> str:
    """The name of a test's runs on record."""
    return uuid.uuid4().hex
