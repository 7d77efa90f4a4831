"""Serving a call whose atask has a limit: it waits for a token without a slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from atasks.errors import DecodeError, LimitError, NotSupported, TransportError

if TYPE_CHECKING:
    from atasks.policies.limit import Limit
    from atasks.tracking.queries import Wanted
    from atasks.transport.limits.contract import Limits, Token
    from atasks.wire import Reply
    from atasks.worker.held_call import HeldCall

__all__ = ["TokenNotes", "TokenWaits", "limited", "take_noted", "take_token"]

FRESH_SECONDS: Final = 0.05
"""Seconds within which a token comes that nobody else has, over a broker that is not near too."""


class TokenNotes(Struct):
    """The tokens of limits that one call waits for, and holds."""

    wanted: list[Wanted] = []
    held: list[str] = []
    """The names of the limits."""


class NotedToken:
    """A token of a call, which is noted at the call while it is held."""

    __slots__ = ("_held", "_name", "_token")

    def __init__(self, token: Token, held: list[str], name: str) -> None:
        self._token = token
        self._held: list[str] | None = held
        self._name = name
        held.append(name)

    def begin(self) -> None:
        """Begin the work that the token was taken for."""
        self._token.begin()

    def release(self) -> None:
        """Give the token back."""
        self._forget()
        self._token.release()

    def release_soon(self) -> None:
        """Give the token back, from any thread."""
        self._forget()
        self._token.release_soon()

    def _forget(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.remove(self._name)


class TokenWaits:
    """The calls of a worker that wait for tokens, and have not begun.

    Most calls get their token at once, and need the slot that they have left: those are fresh waits. One that
    lasts, or is for the same limit as one that does, leaves its slot to other calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        """`changed` is called when a wait turns out to last, and when others last and the last fresh one has
        ended."""
        self._loop = loop
        self._changed = changed
        self.fresh = 0
        self.lasting = 0
        self._by_limit: dict[tuple[str, str | None], int] = {}
        """Those that last, of each limit and value of its key."""

    @contextmanager
    def one(self, name: str, key: str | None) -> Iterator[None]:
        """Count a call that waits."""
        limit = name, key
        timer: asyncio.TimerHandle | None = None

        def last() -> None:
            nonlocal timer
            if timer is not None:
                timer = None
                self.fresh -= 1
                self._changed()
            self.lasting += 1
            self._by_limit[limit] = self._by_limit.get(limit, 0) + 1

        if limit in self._by_limit:
            last()
        else:
            self.fresh += 1
            timer = self._loop.call_later(FRESH_SECONDS, last)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
                self.fresh -= 1
                if not self.fresh and self.lasting:
                    self._changed()
            else:
                self.lasting -= 1
                left = self._by_limit.pop(limit) - 1
                if left:
                    self._by_limit[limit] = left


async def take_noted(run: HeldCall, limits: Limits, limit: Limit, key: str | None) -> Token:
    """A token for the call. While it waits for it, and holds it, that is noted: `atasks tree` asks."""
    if run.tokens is None:
        run.tokens = TokenNotes()
    notes = run.tokens
    name = limit.name if key is None else f"{limit.name}:{blake2b(key.encode(), digest_size=4).hexdigest()}"
    from atasks.tracking.queries import Wanted

    wanted = Wanted(name, limit.rule.at_once)
    notes.wanted.append(wanted)
    try:
        token = await limits.take(limit.name, key, limit.rule)
    finally:
        notes.wanted.remove(wanted)
    return NotedToken(token, notes.held, name)


async def take_token(run: HeldCall, limit: Limit, key: str | None) -> Token:
    """A token for the call, which is parked while it waits. Raises LimitError, NotSupported, NotConnected."""
    limits = run.worker.transport.limits
    if limits is None:
        raise NotSupported(
            f"{type(run.worker.transport).__name__} has no limits: remove @atask(limit=...), or use another "
            "transport"
        )
    run.park(bounded=False)
    token: Token | None = None
    try:
        with run.worker.token_waits.one(limit.name, key):
            token = await take_noted(run, limits, limit, key)
        return token
    finally:
        try:
            await run.unpark()
        except BaseException:
            if token is not None:
                token.release()
            raise


async def limited(
    run: HeldCall,
    serve: Callable[[HeldCall], Awaitable[Reply]],
    arguments: Callable[[HeldCall], Awaitable[tuple[Any, Any]]],
    refuse: Callable[[HeldCall, Exception], Awaitable[Reply]],
) -> Reply:
    """Return the reply of `serve`, with a token of the limit held meanwhile."""
    assert run.atask is not None
    assert run.atask.limit is not None
    limit: Limit = run.atask.limit
    try:
        key = None
        if limit.key is not None:
            args, kwargs = await arguments(run)
            key = limit.key_of(args, kwargs)
            del args, kwargs
        token = await take_token(run, limit, key)
    except (LimitError, TransportError, DecodeError) as error:
        return await refuse(run, error)
    except Exception as error:
        refusal = LimitError(
            f"the key of limit {limit.name!r} failed for {run.call.task} ({type(error).__name__})"
        )
        refusal.__cause__ = error
        return await refuse(run, refusal)
    try:
        if run.permit is not None and not await run.may_begin():  # it has waited over a cut
            raise asyncio.CancelledError
        run.started = time.perf_counter()  # the period of a token begins behind it
        token.begin()
        return await serve(run)
    finally:
        token.release()
