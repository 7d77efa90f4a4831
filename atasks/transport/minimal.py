"""Calls that come by a transport of the minimal contract, which takes one answer to each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from atasks import wire
from atasks.errors import DecodeError
from atasks.options import Executor
from atasks.wire import Call, End, Item, Reply, Report, Status, describe

if TYPE_CHECKING:
    from atasks.transport.server import Server

__all__ = ["Answer", "respond"]


async def respond(server: Server, name: str, content: bytes) -> bytes:
    """Serve a message with one call in: a message with its reply out."""
    try:
        envelopes = wire.decode(content)
        if len(envelopes) != 1 or not isinstance(envelopes[0], Call):
            raise DecodeError("a request is a message of one Call")
    except DecodeError as error:
        salvaged = [bad.id for bad in wire.salvage(content).bad if bad.id is not None]
        server.count_bad(str(error))
        call_id = salvaged[0] if salvaged else "?"
        return wire.encode([wire.ended(call_id, Status.DECODE_ERROR, f"request refused: {error}", server.id)])
    call = envelopes[0]
    delivery = Answer(asyncio.get_running_loop().create_future())
    server.deliver(call, delivery)
    try:
        reply = await delivery.future
    except asyncio.CancelledError:
        server.cancel(call.id)
        raise
    return wire.encode([reply])


class Answer:
    """The delivery of a minimal transport: the reply is what its callback returns."""

    __slots__ = ("future",)

    queue = ""

    def __init__(self, future: asyncio.Future[Reply]) -> None:
        self.future = future

    def reply(self, reply: Reply | End) -> None:
        if not self.future.done():
            self.future.set_result(reply if isinstance(reply, Reply) else reply.reply)

    def send(self, envelope: Item | End | Report) -> None:
        """Nothing: there is one answer, and neither streams nor reports."""

    def drop(self) -> None:
        self.future.cancel()

    async def pass_on(self, call: Call) -> Call | None:
        return None

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        message = f"{describe(call)} met a worker that shuts down"
        self.reply(wire.ended(call.id, Status.WORKER_LOST, message))
