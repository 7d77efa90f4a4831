"""Confirms that nobody waits for are read a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Sized
from typing import Final

from atasks.transport.backends.amqp.broker.frame_reader import FrameReader
from atasks.transport.backends.amqp.broker.outgoing import Outgoing

__all__ = ["FEW", "Confirms"]

FEW: Final = 8
"""Confirms that are read together; and messages in a row, each alone on its way, after which that is begun."""
PATIENCE_SECONDS: Final = 0.005
"""A confirm waits no longer than this to be read."""
OFTEN: Final = 3
"""Messages that have to leave in that time: a read of its own for each of them would cost less than this one."""


class Confirms:
    """Decides when the connection is read by which messages leave.

    The broker confirms each message in a frame of its own. Where calls are made one at a time, each such frame
    costs a turn of the event loop, at either side, while nobody waits for it. So once a few messages in a row have
    left like that, and soon after each other, the event loop looks at this connection no more, and what came is
    read together: when a few messages are unconfirmed, and after `PATIENCE_SECONDS`. It looks again as soon as
    several messages leave at once, or one whose confirm is awaited; when the broker confirms too little; and when
    fewer than `OFTEN` have left meanwhile.
    """

    def __init__(self, reader: FrameReader, unconfirmed: Sized) -> None:
        """`unconfirmed`: the messages of which the broker has said nothing."""
        self._reader = reader
        self._unconfirmed = unconfirmed
        self._in_row = 0
        """Messages that left one at a time, and whose confirms nobody waits for, without another one between."""
        self._since = 0.0
        """When the first of these left (event loop time)."""
        self._timer: asyncio.TimerHandle | None = None
        """The next read; None: the event loop looks at the connection."""
        self._reading = False
        """True if it is read soon, because a few messages are unconfirmed."""
        self._new = 0
        """Messages that have left since the last read by the timer."""

    def left(self, messages: Sequence[Outgoing]) -> None:
        """These messages are leaving: the event loop may look away, or has to look again."""
        if self._timer is None:
            if len(self._unconfirmed) > 2 or messages[0].is_awaited:
                self._in_row = 0
                return
            self._in_row += 1
            if self._in_row == 1:
                self._since = asyncio.get_running_loop().time()
            elif self._in_row >= FEW:
                self._in_row = 0
                took = asyncio.get_running_loop().time() - self._since
                if took * OFTEN < FEW * PATIENCE_SECONDS and self._reader.look_away():
                    self._wait()
        elif len(messages) > 1 or messages[0].is_awaited:
            self.look()
        else:
            self._new += 1
            if len(self._unconfirmed) >= FEW and not self._reading:
                self._reading = True
                asyncio.get_running_loop().call_soon(self._read)

    def look(self) -> None:
        """Have the event loop look at the connection, as it does with any other one."""
        self._in_row = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._reader.look()

    def _wait(self) -> None:
        self._new = 0
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._tick)

    def _read(self) -> None:
        """Read the confirms of a few messages; look again if the broker has confirmed less than half of them."""
        self._reading = False
        if self._timer is not None:
            self._reader.read_now()
            if len(self._unconfirmed) > FEW // 2:
                self.look()

    def _tick(self) -> None:
        self._reader.read_now()
        if self._timer is None:
            return  # what was read had a message leave whose confirm is awaited
        if self._new >= OFTEN:
            self._wait()
        else:
            self.look()
