"""A caller and workers over the broker, and a peer beside them that is made by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from atasks.testing import Site
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.peer import Peer

NewTransport = Callable[..., AMQPTransport]


@pytest.fixture
def new_transport(amqp_url: str, prefix: str, amqp_leaks: None) -> NewTransport:
    """Makes transports of this test's prefix."""

    def new(namespace: str, **options: Any) -> AMQPTransport:
        return AMQPTransport(amqp_url, namespace, prefix=prefix, **options)

    return new


@pytest.fixture
def site(new_transport: NewTransport) -> Iterator[Site]:
    """Atasks, a caller and workers in a namespace of this test's own."""
    site = Site(new_transport)
    yield site
    site.close()


@pytest.fixture
async def peer(amqp_url: str, prefix: str, site: Site) -> AsyncIterator[Peer]:
    """A client of the broker that is made by hand, in the same namespace."""
    async with Peer.connect(amqp_url, prefix, site.namespace) as peer:
        yield peer
