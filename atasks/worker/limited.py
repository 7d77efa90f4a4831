"""Serving a call whose atask has a limit: it waits for a token without a slot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from atasks.errors import DecodeError, LimitError, NotSupported, TransportError

if TYPE_CHECKING:
    from atasks.policies.limit import Limit
    from atasks.transport.limits.contract import Token
    from atasks.wire import Reply
    from atasks.worker.held_call import HeldCall

__all__ = ["limited", "take_token"]


async def take_token(run: HeldCall, limit: Limit, key: str | None) -> Token:
    """A token for the call, which is parked while it waits. Raises LimitError, NotSupported, NotConnected."""
    limits = run.worker.transport.limits
    if limits is None:
        raise NotSupported(
            f"{type(run.worker.transport).__name__} has no limits: take @atask(limit=...) away, or use another one"
        )
    run.park(bounded=False)
    token: Token | None = None
    try:
        token = await limits.take(limit.name, key, limit.rule)
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
        token.begin()
        run.started = time.perf_counter()
        return await serve(run)
    finally:
        token.release()
