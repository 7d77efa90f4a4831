"""Journals of calls that resume, looked at from outside."""

from __future__ import annotations

import asyncio

from atasks.testing import Site
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.session import Session
from atasks.transport.backends.amqp.transport import AMQPTransport
from atasks.transport.journals import journal_name
from tests.broker import Broker


def _session(site: Site) -> Session:
    transport = site.worker.transport
    assert isinstance(transport, AMQPTransport)
    return transport.session


def _link(site: Site) -> Link:
    link = _session(site).link
    assert link is not None
    return link


def journal_queue(site: Site, parent: str) -> str:
    """The queue of the journal of a call."""
    return _session(site).topology.kept(journal_name(parent, True))


def journal_address(site: Site, parent: str) -> str:
    """The reply address of the calls that a call makes."""
    return _session(site).topology.lock(journal_name(parent, True))


def left_of_journals(broker: Broker, prefix: str) -> list[str]:
    """The journals at the broker, and their locks."""
    kinds = (f"{prefix}.run.", f"{prefix}.lock.")
    return [queue.name for queue in broker.queues() if queue.name.startswith(kinds)]


async def messages_in(site: Site, queue: str) -> int | None:
    """The messages in a queue; None: it is not there."""
    state = await _link(site).queue_state(queue)
    return None if state is None else state[0]


async def holds(site: Site, queue: str, messages: int | None) -> None:
    """Return when there are so many messages in a queue: a reply may come here before it is in its journal."""
    while await messages_in(site, queue) != messages:
        await asyncio.sleep(0.01)


async def bodies_in(site: Site, queue: str) -> list[bytes]:
    """The bodies of the messages in a queue, which stay there."""
    channel, bodies = await _link(site).open_channel(), []
    while (got := await channel.basic_get(queue)).delivery_tag is not None:
        bodies.append(got.body)
    await channel.close()
    return bodies


async def has_spares(transport: AMQPTransport) -> None:
    """Return when a journal can be asked for at once."""
    assert transport.session.link is not None
    while not transport.session.link.spares.has(2):
        await asyncio.sleep(0.01)


async def empty(site: Site, queue: str) -> None:
    """Have the broker lose what is in the queue, as one does that is killed over its deletion."""
    channel = await _link(site).open_channel()
    await channel.queue_purge(queue)
    await channel.close()


async def gone(site: Site, queue: str) -> None:
    """Return when the queue is not there any more."""
    while await messages_in(site, queue) is not None:
        await asyncio.sleep(0.01)
