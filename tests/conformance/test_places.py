"""Transports with several workers, held to the cases of blocking functions."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from atasks import Transport
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.hub.listener import Host
from tests.conformance.places import PlaceCases


class TestLocal(PlaceCases):
    @pytest.fixture
    async def new_transport(self) -> AsyncIterator[Callable[[str], Transport]]:
        with tempfile.TemporaryDirectory(prefix="at-") as directory:  # short enough for a socket
            path = str(Path(directory) / "hub.sock")
            host = await Host.open(path)
            yield lambda namespace: LocalTransport(path, namespace, hub=False)
            await host.close()


@pytest.mark.usefixtures("amqp_leaks")
class TestAMQP(PlaceCases):
    @pytest.fixture(params=["classic", "quorum"])
    def new_transport(
        self, request: pytest.FixtureRequest, amqp_url: str, prefix: str
    ) -> Callable[[str], Transport]:
        return lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, queue_type=request.param)
