"""Whether any worker knows the key of this caller: otherwise its calls are refused, and nobody would tell it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from atasks import wire
from atasks.namespaces import namespace_item
from atasks.transport.backends.amqp.broker.outbox import Outgoing
from atasks.wire import CONTENT_TYPE, VERSION, Ask

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.seals import Seals
    from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["probe"]

logger = logging.getLogger("atasks.keys")

SECONDS: Final = 5.0


async def probe(transport: AMQPTransport, seals: Seals) -> None:
    """Ask the workers of every queue that this program may call something, and warn if none answers in time."""
    topology, registry = transport.topology, namespace_item(transport.namespace).registry
    items = (registry.get(name) for name in registry.names())
    queues = sorted({transport.queue_of(item.options) for item in items if item is not None} | {transport.queue})
    for queue in queues:
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=f"probe:{queue}",
            reply_to=transport.reply_queue,
            delivery_mode=1,
        )
        body, key = wire.encode([Ask(VERSION, [])]), topology.queue_key(queue)
        transport.outbox.put(Outgoing(body, key, properties, exchange=topology.control, mandatory=False))
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
