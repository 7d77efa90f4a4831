"""The probe of a caller with a key: does any worker know that key? If none does, calls would be refused, and
nobody could say so."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.namespaces import namespace_item
from atasks.wire import VERSION, Ask

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.seals import Seals
    from atasks.transport.backends.amqp.session import Session

__all__ = ["probe"]

logger = logging.getLogger("atasks.keys")

SECONDS: Final = 5.0


async def probe(session: Session, seals: Seals) -> None:
    """Ask the workers of every queue that this program may call something, and warn if none answers in time."""
    topology = session.topology
    registry = namespace_item(topology.namespace).registry
    items = (registry.get(name) for name in registry.names())
    queues = sorted({session.queue_of(item.options) for item in items if item is not None} | {session.queue})
    for queue in queues:
        key, reply_to = topology.queue_key(queue), session.reply_queue
        session.outbox.put(
            session.control([Ask(VERSION, [])], key, message_id=f"probe:{queue}", reply_to=reply_to)
        )
    try:
        async with asyncio.timeout(SECONDS):
            await seals.answered.wait()
    except TimeoutError:
        keys = seals.keys
        logger.warning(
            "no worker of %s has answered the key %r of %s within %g s: none serves yet, or none has this key "
            "(atasks keys check FILE shows which keys a file holds)",
            f"queue {queues[0]!r}" if len(queues) == 1 else f"the {len(queues)} queues",
            keys.own.name,
            keys.path,
            SECONDS,
        )
