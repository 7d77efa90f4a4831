"""Answers to questions about a worker: `atasks ps` and the other commands ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiormq.abc import DeliveredMessage

from atasks import wire
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.seals import key_of
from atasks.wire import Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.backends.amqp.worker.telling import Telling

__all__ = ["answer_query"]


def answer_query(
    station: Station, telling: Telling, queues: Sequence[str], query: Query, message: DeliveredMessage
) -> None:
    """Answer a question to the queue that its message names, under the key that sealed it."""
    session, reply_to = station.session, message.header.properties.reply_to
    if not reply_to or not session.topology.is_reply_queue(reply_to):
        return
    owner = None if session.seals is None else session.seals.owner_for(message)
    key = None if session.seals is None else key_of(message)
    found = station.worker.answer(queues, query, owner, key)
    if found is not None:
        if station.worker.watching is not None:
            telling.open()
        body = wire.encode([found])
        station.put(Outgoing(body, reply_to, station.properties(1), mandatory=False, key=key))
