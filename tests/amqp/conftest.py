"""A caller and workers over the broker, and a peer beside them that is made by hand."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

import atasks
from atasks import Transport
from atasks.testing import Site
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker import link
from atasks.transport.backends.local.hub.listener import Host
from tests.amqp.peer import Peer

NewTransport = Callable[..., AMQPTransport]
Meeting = tuple[str, dict[str, Any]]
Connect = Callable[..., AbstractAsyncContextManager[Transport]]


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


@pytest.fixture
def socket_path() -> Iterator[str]:
    """The path of a socket that nobody listens on yet, short enough for one."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        yield f"{directory}/hub.sock"


@pytest.fixture(params=["amqp", "local"])
async def meeting(request: pytest.FixtureRequest) -> AsyncIterator[Meeting]:
    """URL and options for any number of callers and workers: at the broker, or around a hub that is here."""
    if request.param == "amqp":
        url, prefix = request.getfixturevalue("amqp_url"), request.getfixturevalue("prefix")
        request.getfixturevalue("amqp_leaks")
        yield url, {"prefix": prefix}
        return
    path = request.getfixturevalue("socket_path")
    host = await Host.open(path)
    yield f"unix://{path}", {"hub": False}
    await host.close()


@pytest.fixture(params=["amqp", "loopback", "local"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Connects what may call and serve: all of it in one process."""
    return connecting(request, request.param)


def connecting(request: pytest.FixtureRequest, kind: str) -> Connect:
    """Return what connects so: over "loopback", "local" or "amqp", or the latter with records in "postgres"."""
    if kind == "local":
        path = request.getfixturevalue("socket_path")
        request.getfixturevalue("no_leaked_tasks")

        @asynccontextmanager
        async def local(**options: Any) -> AsyncIterator[Transport]:
            """A worker that joins a hub, and one beside the hub that serves nothing."""
            async with (
                atasks.connect(f"unix://{path}", hub=True, workers=0),
                atasks.serve(f"unix://{path}", hub=False, grace=0, **options) as worker,
            ):
                yield worker.transport

        return local
    if kind == "loopback":

        def loopback(**options: Any) -> AbstractAsyncContextManager[Transport]:
            return atasks.connect("loopback:", **options)

        return loopback
    url, prefix = request.getfixturevalue("amqp_url"), request.getfixturevalue("prefix")
    request.getfixturevalue("amqp_leaks")
    records = request.getfixturevalue("postgres_url") if kind == "postgres" else ""

    @asynccontextmanager
    async def amqp(**options: Any) -> AsyncIterator[Transport]:
        async with atasks.serve(url, prefix=prefix, records=records, grace=0, **options) as worker:
            yield worker.transport

    return amqp


@pytest.fixture(params=[False, True], ids=["read here", "read by the client library"])
def whoever_reads_frames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with frames that atasks reads and writes itself, and once as with `ATASKS_LOG_FRAMES=1`."""
    monkeypatch.setattr(link, "LOG_FRAMES", request.param)
