"""Makes callers wait while the hub has too much of what they sent."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from atasks.transport.backends.local.conversation import Conversation

__all__ = ["Backpressure"]

AT_ONCE: Final = 64
"""Callers that are let in before the next look at whether there is still room."""


class Backpressure:
    """Closed while the hub says so, and while it does not read what is sent to it."""

    def __init__(self) -> None:
        self._link: Conversation | None = None
        self._held = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def attach(self, link: Conversation) -> None:
        """Requests leave over this link from now on."""
        self._link = link
        self._held = False
        self._let_in()

    def hold(self, on: bool) -> None:
        """The hub says to send no more for now, or that there is room again."""
        self._held = on
        self._let_in()

    def open_link(self) -> None:
        """The hub reads again."""
        self._let_in()

    def _is_open(self) -> bool:
        return not self._held and (self._link is None or not self._link.clogged)

    def room(self) -> asyncio.Future[None] | None:
        """Return a future to await before asking again; None: there is room."""
        if self._is_open():
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return waiter

    def _let_in(self) -> None:
        """Some at a time, so that not all of them send before it can close again."""
        if not self._is_open():
            return
        for _ in range(min(AT_ONCE, len(self._waiting))):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._let_in)
