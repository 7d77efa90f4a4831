"""The tries of a call: each is a call of its own, with the same deadline and the same key."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NoReturn

import msgspec

from atasks.caller.decoding import reply_error
from atasks.codecs.culprits import brief
from atasks.current import new_call_id
from atasks.wire import Call, Reply, Status

if TYPE_CHECKING:
    from atasks.codecs.base import Codec
    from atasks.options import TaskOptions
    from atasks.policies.retry import Retry
    from atasks.router import Router
    from atasks.transport.contract import Transport

__all__ = ["Tries", "tried"]

_log = logging.getLogger("atasks")


async def tried(router: Router, codec: Codec, transport: Transport, call: Call, options: TaskOptions) -> Reply:
    """The value of the first try that gives one. Raises what the last one ended in.

    It is awaited in place of `Transport.request`, so the call that makes it is parked over all tries and pauses.
    """
    assert options.retry is not None, "else there is one try"
    tries = Tries(call, options.retry, transport)
    while True:
        try:
            reply = await transport.request(tries.call, options)
            if reply.status == Status.VALUE:
                return reply
            raise await reply_error(reply, tries.call, codec)
        except Exception as error:
            await tries.another(error)


class Tries:
    """The tries of one call."""

    def __init__(self, call: Call, retry: Retry, transport: Transport) -> None:
        self.call = call
        """The present one."""
        self.transport = transport
        """Over which they go."""
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timeout = None if call.timeout_ms is None else call.timeout_ms / 1000
        self._notes: list[str] = []

    async def another(self, error: Exception) -> None:
        """Pause, and make `call` that of the next try. If there is to be none, raise the error, with a note for
        each earlier try."""
        retry, number = self._retry, self.call.try_
        if number >= retry.attempts or not retry.wants(error) or not self.transport.usable(self._loop):
            self._give_up(error)
        pause = retry.pause(error, number)
        if (refusal := self._too_late(pause)) is not None:
            self._give_up(error, refusal)
        call = self.call
        _log.info(
            "%s ended in %s at try %d of %d: the next one begins in %.1f s",
            call.task,
            type(error).__name__,
            number,
            retry.attempts,
            pause,
        )
        self._notes.append(f"atasks: try {number} of {call.task} ended in {brief(error)}")
        if not await self.transport.pause(pause):
            self._give_up(error, "the connection was left")
        self._begin(call)

    def _too_late(self, pause: float) -> str | None:
        """Why no try may begin after this pause; None: it may."""
        begins = self._loop.time() - self._began + pause
        if self._timeout is not None and begins >= self._timeout:
            return "it would begin after the deadline"
        if self._retry.too_late(begins):
            return f"it would begin more than {self._retry.until:g} s after the first one"
        return None

    def _begin(self, before: Call) -> None:
        timeout_ms = before.timeout_ms
        if self._timeout is not None:
            timeout_ms = max(1, round((self._timeout - self._loop.time() + self._began) * 1000))
        self.call = msgspec.structs.replace(
            before,
            id=new_call_id(),
            key=before.key or before.id,
            try_=before.try_ + 1,
            timeout_ms=timeout_ms,
            sent_ms=int(time.time() * 1000),
        )

    def _give_up(self, error: Exception, why: str | None = None) -> NoReturn:
        """Raise the error, which is the last one."""
        if why is not None:
            self._notes.append(f"atasks: try {self.call.try_} was the last one: {why}")
        for note in self._notes:
            error.add_note(note)
        raise error
