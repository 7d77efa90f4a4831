"""Journals of calls that resume, looked at from outside."""

from __future__ import annotations

import asyncio

from atasks.testing import Site
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.journals import journal_name


def journal_queue(site: Site, parent: str) -> str:
    """The queue of the journal of a call."""
    transport = site.worker.transport
    assert isinstance(transport, AMQPTransport)
    return transport.session.topology.kept(journal_name(parent, True))


async def messages_in(site: Site, queue: str) -> int | None:
    """The messages in a queue; None: it is not there."""
    transport = site.worker.transport
    assert isinstance(transport, AMQPTransport)
    assert transport.session.link is not None
    state = await transport.session.link.queue_state(queue)
    return None if state is None else state[0]


async def gone(site: Site, queue: str) -> None:
    """Return when the queue is not there any more."""
    while await messages_in(site, queue) is not None:
        await asyncio.sleep(0.01)
