"""Taking tokens of limits from the hub."""

from __future__ import annotations

import asyncio
import itertools

from atasks.errors import LimitError, NotConnected
from atasks.policies.limit import Rule
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.messages import Begun, GiveToken, TakeToken, TokenTaken
from atasks.transport.limits.contract import Limits

__all__ = ["HubToken", "LocalLimits"]


class LocalLimits(Limits):
    """The limits of one namespace at the hub. Who waits when a hub is gone waits at the next one, which does not
    know what is held."""

    def __init__(self) -> None:
        self._link: Conversation | None = None
        self._refusal: str | None = "this transport is not connected: await its connect() first"
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiter] = {}

    def attach(self, link: Conversation) -> None:
        """Ask this hub from now on."""
        self._link = link
        self._refusal = None
        for waiter in self._waiting.values():
            link.send(waiter.message)

    def detach(self) -> None:
        """The hub is gone: wait for the next one."""
        self._link = None

    def close(self, reason: str) -> None:
        """There will be no other hub: what waits for one ends in NotConnected."""
        self._link = None
        self._refusal = reason
        for waiter in self._waiting.values():
            waiter.fail(NotConnected(reason))

    def answered(self, message: TokenTaken) -> None:
        """The hub has answered."""
        waiter = self._waiting.get(message.number)
        if waiter is None:
            return
        if message.refusal:
            waiter.fail(LimitError(message.refusal))
        elif not waiter.taken.done():
            waiter.taken.set_result(None)

    async def take(self, name: str, key: str | None, rule: Rule) -> HubToken:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        number = next(self._numbers)
        waiter = _Waiter(TakeToken(number, name, key, *rule))
        self._waiting[number] = waiter
        if self._link is not None:
            self._link.send(waiter.message)
        try:
            await waiter.taken
        except BaseException:
            self.give(number, self._link)
            raise
        finally:
            del self._waiting[number]
        return HubToken(self, number, self._link)

    def give(self, number: int, link: Conversation | None) -> None:
        """The hub may have a token back; not another hub, which knows nothing of it."""
        if link is not None and link is self._link:
            link.send(GiveToken(number))

    def begun(self, number: int, link: Conversation | None) -> None:
        """Tell the hub that the work of a token begins."""
        if link is not None and link is self._link:
            link.send(Begun(number))


class _Waiter:
    """A waiter for a token."""

    __slots__ = ("message", "taken")

    def __init__(self, message: TakeToken) -> None:
        self.message = message
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.taken.done():
            self.taken.set_exception(error)


class HubToken:
    """A token that the hub gave to this process."""

    __slots__ = ("_is_over", "_limits", "_link", "_loop", "_number")

    def __init__(self, limits: LocalLimits, number: int, link: Conversation | None) -> None:
        self._limits = limits
        self._number = number
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._is_over = False

    def begin(self) -> None:
        """Begin the work that the token was taken for."""
        self._limits.begun(self._number, self._link)

    def release(self) -> None:
        """Give the token back: the work has ended, or will not begin."""
        if not self._is_over:
            self._is_over = True
            self._limits.give(self._number, self._link)

    def release_soon(self) -> None:
        """Give the token back, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.release)
