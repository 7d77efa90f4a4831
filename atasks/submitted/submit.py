"""Handing one call over to the workers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from atasks.current import new_call_id
from atasks.errors import AlreadySubmitted
from atasks.options import MAX_DELAY, TaskOptions
from atasks.submitted.handle import Handle, records_of
from atasks.submitted.tries import named_as, tries_of, whole
from atasks.transport.records.contract import GENERATION
from atasks.wire import RUN_TRIES

if TYPE_CHECKING:
    from atasks.router import Router

__all__ = ["submit", "unique_id"]


async def submit(
    router: Router, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
) -> Handle[Any]:
    """Have a worker run the call, and return its handle when it is safe. See `ATask.submit`."""
    records = records_of(router)
    delay = delay_of(options)
    options = options.with_changes({"orphan": "run", "batch": False})

    unique = None if options.unique is None else unique_id(name, options.unique)

    async def send(name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        if options.retry is None:
            call = await router.request_to_keep(name, args, options, router.transport(), kwargs)
        else:
            tries = tries_of(name, options, args, kwargs)
            tried = named_as(name, RUN_TRIES)
            call = await router.request_to_keep(tried, tries, whole(options), router.transport())
        if unique is not None:
            call.id = unique
        call.sent_ms += int(delay * 1000)  # when it may begin
        holder = await records.begin(call, options, delay=delay, named=str(name))
        if holder != call.id and options.on_conflict == "error":
            raise AlreadySubmitted(
                f"a call of {name} with this unique key waits or runs, or its record is kept: its id is {holder}"
            )
        return Handle(holder, router.namespace, kept=options.keep != 0, new=holder == call.id)

    # The deadline applies to the run, and not to the middlewares of the submitter.
    around = options.with_changes({"timeout": None})
    handle: Handle[Any] = await router.submit_inside(name, tuple(args), kwargs, around, send, unique)
    return handle


def unique_id(name: str, key: str) -> str:
    """A new id for a call of this atask with this key: the same for all such calls, but for what is behind
    `GENERATION`."""
    digest = blake2b(f"{name}\0{key}".encode(), digest_size=16).hexdigest()
    return f"{digest}{GENERATION}{new_call_id()[:12]}"


def delay_of(options: TaskOptions) -> float:
    """After how many seconds a call that is submitted now may begin. Raises ValueError for a moment that is too
    far away."""
    if options.at is None:
        return options.delay or 0.0
    delay = options.at.timestamp() - time.time()
    if delay > MAX_DELAY:
        raise ValueError(f"at={options.at!r} is {delay:.0f} seconds from now: at most {MAX_DELAY:.0f} (60 days)")
    return max(delay, 0.0)
