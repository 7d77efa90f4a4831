"""The tries of an event's handler: made by the worker that has the event, since nobody awaits it who could."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from msgspec import structs

from atasks.codecs.base import ends_here
from atasks.errors import DecodeError
from atasks.failures.failures import decode_failure
from atasks.wire import Reply, Status

if TYPE_CHECKING:
    from atasks.policies.retry import Retry
    from atasks.worker.held_call import HeldCall

__all__ = ["tried"]

_log = logging.getLogger("atasks")


async def tried(run: HeldCall, retry: Retry, serve: Callable[[HeldCall], Awaitable[Reply]]) -> Reply:
    """Return the reply of the first try by `serve` that gives a value, or that of the last one. The run is parked
    in the pauses, and its blocking function leaves its place."""
    began = run.loop.time()
    while True:
        reply = await serve(run)
        if reply.status != Status.RAISED:
            return reply
        pause = await _pause(run, retry, reply, began)
        if pause is None:
            return reply
        await _rest(run, pause)
        run.try_again(structs.replace(run.call, try_=run.call.try_ + 1))


async def _pause(run: HeldCall, retry: Retry, reply: Reply, began: float) -> float | None:
    """Return the seconds until the next try; None: there is none."""
    call, now = run.call, run.loop.time()
    if call.try_ >= retry.attempts:
        return None
    try:
        error = await decode_failure(reply.payload, run.worker.router.codec)
        if not isinstance(error, Exception) or not retry.wants(error):
            return None
    except DecodeError:
        return None
    except Exception as error:
        if ends_here(error):
            raise
        _log.exception("%s is not tried again: the function that its retry has in `on` raised", call.task)
        return None
    pause = retry.pause(error, call.try_)
    if retry.too_late(now - began + pause) or (run.deadline is not None and now + pause >= run.deadline):
        return None
    _log.info(
        "%s ended in %s at try %d of %d: the next one begins in %.1f s",
        call.task,
        type(error).__name__,
        call.try_,
        retry.attempts,
        pause,
    )
    return pause


async def _rest(run: HeldCall, pause: float) -> None:
    """Wait without a slot, and without a place in a pool."""
    if run.place is not None:
        run.place.give()
        run.place = None
    run.park(bounded=False)
    try:
        await run.worker.transport.pause(pause)
        if run.executor is not None:
            place = run.worker.pools.places[run.executor]
            await place.retake()
            run.place = place
    finally:
        await run.unpark()
