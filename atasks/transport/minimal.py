"""A call that came by a transport of the minimal contract, which takes one answer."""

from __future__ import annotations

import asyncio

from atasks import wire
from atasks.options import Executor
from atasks.wire import Call, End, Item, Reply, Status, describe

__all__ = ["Answer"]


class Answer:
    """The delivery of a minimal transport: the reply is what its callback returns."""

    __slots__ = ("future",)

    queue = ""

    def __init__(self, future: asyncio.Future[Reply]) -> None:
        self.future = future

    def reply(self, reply: Reply | End) -> None:
        if not self.future.done():
            self.future.set_result(reply if isinstance(reply, Reply) else reply.reply)

    def send(self, envelope: Item | End) -> None:
        """Nothing: there is one answer, and no streams."""

    def drop(self) -> None:
        self.future.cancel()

    async def pass_on(self, call: Call) -> Call | None:
        return None

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        message = f"{describe(call)} met a worker that shuts down"
        self.reply(wire.ended(call.id, Status.WORKER_LOST, message))
