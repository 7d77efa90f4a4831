"""A stream, to a consumer in an event loop that reads it by another one."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from atasks.caller.stream import RemoteStream
from atasks.current import serving_here
from atasks.transport.bridge import Bridge

__all__ = ["BridgedStream"]

T = TypeVar("T")


class BridgedStream(RemoteStream[T]):
    """The items of a stream, each fetched by the event loop that is connected, where that is another one."""

    _bridge: Bridge | None = None
    _far: RemoteStream[T] | None = None
    """The stream in that event loop; None: it has not begun, or this event loop is connected itself."""

    async def __anext__(self) -> T:
        """The next item."""
        if self._far is None and (self._arguments is None or not self._begin_far()):
            return await super().__anext__()
        assert self._far is not None
        assert self._bridge is not None
        self._claim()
        try:
            return await self._bridge.forward(self._far.__anext__)
        except BaseException:
            self._close()
            raise
        finally:
            self._busy = False

    def _begin_far(self) -> bool:
        """Have the other event loop read it, if this one is not connected."""
        transport = self._router._transport(serving_here())
        if not isinstance(transport, Bridge) or self._arguments is None:
            return False
        (args, kwargs), self._arguments = self._arguments, None
        self._loop = asyncio.get_running_loop()
        self._bridge = transport
        self._far = RemoteStream(self._router, self._name, args, kwargs)
        return True

    def _close(self) -> None:
        super()._close()
        if self._far is not None:
            self._far._close()
