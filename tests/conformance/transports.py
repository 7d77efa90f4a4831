"""The transports that cases are held to: each class gives them `new_transport`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from atasks import LoopbackTransport, Transport
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.hub.listener import Host
from tests.conformance.memory import MemoryTransport, Switchboard
from tests.keys import KeyFiles, caller_first


class OverLoopback:
    shared_transport = True

    @pytest.fixture
    def new_transport(self) -> Callable[[str], Transport]:
        return LoopbackTransport


class OverMemory:
    """A transport of the minimal contract."""

    @pytest.fixture
    def new_transport(self) -> Callable[[str], Transport]:
        board = Switchboard()
        return lambda namespace: MemoryTransport(board, namespace)


class _Socket:
    @pytest.fixture
    def socket_path(self) -> Iterator[str]:
        """Short enough for a socket, which the paths of pytest may not be."""
        with tempfile.TemporaryDirectory(prefix="at-") as directory:
            yield str(Path(directory) / "hub.sock")


class OverLocal(_Socket):
    """Caller and workers around a hub, each with a socket of its own."""

    @pytest.fixture
    async def new_transport(self, socket_path: str) -> AsyncIterator[Callable[[str], Transport]]:
        host = await Host.open(socket_path)
        yield lambda namespace: LocalTransport(socket_path, namespace, hub=False)
        await host.close()


class OverLocalHub(_Socket):
    """The process that has the hub calls itself."""

    shared_transport = True

    @pytest.fixture
    def new_transport(self, socket_path: str) -> Callable[[str], Transport]:
        return lambda namespace: LocalTransport(socket_path, namespace, hub=True)


@pytest.mark.usefixtures("amqp_leaks")
class OverAMQP:
    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix)


@pytest.mark.usefixtures("amqp_leaks")
class OverAMQPQuorum:
    """Replicated queues differ in how windows, cancelled consumers and returned messages behave."""

    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, queue_type="quorum")


@pytest.mark.usefixtures("amqp_leaks")
class OverAMQPSealed:
    """Messages are sealed: the caller has a key of its own, and the workers have theirs and the caller's."""

    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str, tmp_path: Path) -> Callable[[str], Transport]:
        return caller_first(amqp_url, prefix, KeyFiles(tmp_path, shop=""), "shop")


@pytest.mark.usefixtures("amqp_leaks")
class OverAMQPEncrypted:
    """Messages are sealed and encrypted, over quorum queues."""

    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str, tmp_path: Path) -> Callable[[str], Transport]:
        keys = KeyFiles(tmp_path, shop="encrypt")
        return caller_first(amqp_url, prefix, keys, "shop", queue_type="quorum")


@pytest.mark.usefixtures("amqp_leaks")
class OverAMQPWithPostgres:
    """Submitted calls have their records in PostgreSQL."""

    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str, postgres_url: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, records=postgres_url)
