"""A process around a hub that answers questions to workers by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from msgspec import msgpack

from atasks import wire
from atasks.transport.backends.local.messages import Serve, Slots
from tests.local.around_hub import process

__all__ = ["answering"]


@asynccontextmanager
async def answering(path: str, answers: Mapping[str, Any]) -> AsyncIterator[None]:
    """A worker of that hub that gives these answers to questions of these kinds (of `inspect`, by what is asked
    for), and no other ones."""
    async with process(path) as (here, received):
        here.send(Serve("forged", ["q"]))
        here.send(Slots(0, 0))
        heard = here.receive

        def receive(messages: list[Any]) -> None:
            heard(messages)
            for query in messages:
                if isinstance(query, wire.Query):
                    asked = msgpack.decode(query.content)
                    answer = answers.get(asked.get("what", asked["type"]))
                    if answer is not None:
                        here.send(wire.QueryAnswer(wire.VERSION, query.token, "forged", msgpack.encode(answer)))

        here.receive = receive
        assert received
        yield
        await asyncio.sleep(0)
