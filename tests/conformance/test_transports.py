"""Every transport, held to the same list of cases."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from atasks import LoopbackTransport, Transport
from atasks.testing import TransportConformance
from atasks.testing.endings import EndingCases
from atasks.testing.nesting import NestingCases
from atasks.testing.stream_endings import StreamEndingCases
from atasks.testing.streams import StreamCases
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.host import Host
from tests.conformance.memory import MemoryTransport, Switchboard


class TestLoopback(TransportConformance):
    shared_transport = True

    @pytest.fixture
    def new_transport(self) -> Callable[[str], Transport]:
        return LoopbackTransport


class TestMemory(TransportConformance):
    """A transport of the minimal contract."""

    @pytest.fixture
    def new_transport(self) -> Callable[[str], Transport]:
        board = Switchboard()
        return lambda namespace: MemoryTransport(board, namespace)


@pytest.fixture
def socket_path() -> Iterator[str]:
    """Short enough for a socket, which the paths of pytest may not be."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        yield str(Path(directory) / "hub.sock")


class TestLocal(TransportConformance):
    """Caller and workers around a hub, each with a socket of its own."""

    @pytest.fixture
    async def new_transport(self, socket_path: str) -> AsyncIterator[Callable[[str], Transport]]:
        host = await Host.open(socket_path)
        yield lambda namespace: LocalTransport(socket_path, namespace, hub=False)
        await host.close()


class TestLocalHub(TransportConformance):
    """The process that has the hub calls itself."""

    shared_transport = True

    @pytest.fixture
    def new_transport(self, socket_path: str) -> Callable[[str], Transport]:
        return lambda namespace: LocalTransport(socket_path, namespace, hub=True)


@pytest.mark.usefixtures("amqp_leaks")
class TestAMQP(TransportConformance):
    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix)


@pytest.mark.usefixtures("amqp_leaks")
class TestAMQPQuorum(NestingCases, EndingCases, StreamCases, StreamEndingCases):
    """Replicated queues differ in how windows, cancelled consumers and returned messages behave."""

    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, queue_type="quorum")
