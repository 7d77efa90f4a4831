"""Every transport, held to the same list of cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atasks import LoopbackTransport, Transport
from atasks.testing import TransportConformance
from atasks.testing.endings import EndingCases
from atasks.testing.nesting import NestingCases
from atasks.transport.backends.amqp import AMQPTransport
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


@pytest.mark.usefixtures("amqp_leaks")
class TestAMQP(TransportConformance):
    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix)


@pytest.mark.usefixtures("amqp_leaks")
class TestAMQPQuorum(NestingCases, EndingCases):
    """Replicated queues differ in how windows, cancelled consumers and returned messages behave."""

    @pytest.fixture
    def new_transport(self, amqp_url: str, prefix: str) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, queue_type="quorum")
