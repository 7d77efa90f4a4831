"""The request of a call: its arguments in bytes, its envelope, and the context variables that travel with it."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atasks.codecs.base import Codec, as_bytes
from atasks.codecs.checked import over_limit
from atasks.current import carried, new_call_id
from atasks.definitions import BaseTask, FilledName, TaskName
from atasks.errors import CallTimeout, PayloadTooLarge
from atasks.options import TaskOptions
from atasks.wire import AT_LEAST_ONCE, AT_MOST_ONCE, VERSION, Call

if TYPE_CHECKING:
    from atasks.transport.contract import Transport
    from atasks.worker.held_call import HeldCall

__all__ = ["carried_context", "encoded_arguments", "new_call"]


async def encoded_arguments(
    name: str, task: BaseTask[..., Any] | None, codec: Codec, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bytes:
    """The arguments of a call in the codec's bytes; `task`: its atask, if it is known here. Raises EncodeError."""
    kwargs = dict(kwargs)
    try:
        return as_bytes(await codec.encode((args, kwargs)), codec)
    except Exception as error:
        from atasks.codecs.culprits import unencodable_arguments

        raise await unencodable_arguments(name, task and task.local, args, kwargs, codec, error) from error


def new_call(
    name: str,
    payload: bytes,
    options: TaskOptions,
    transport: Transport,
    codec: Codec,
    run: HeldCall | None,
) -> Call:
    """The request of a call that `run` makes, or nobody's; all but its context. Raises PayloadTooLarge."""
    if len(payload) > transport.max_payload:
        what, instead = f"the arguments of {name} have", "pass a reference to them instead"
        raise PayloadTooLarge(over_limit(what, len(payload), transport.max_payload, instead))
    timeout, root, parent = options.timeout, None, None
    if run is not None:
        above = run.call
        parent = above.id
        root = above.root or parent
        if run.deadline is not None:
            timeout = _time_left(name, run, run.deadline, timeout)
    call = Call(
        VERSION,
        new_call_id(),
        str(name) if type(name) is not TaskName or name.task is None else name.task.name,  # one text for all calls
        payload,
        codec.name,
        None if timeout is None else max(1, round(timeout * 1000)),
        int(time.time() * 1000),
        1,
        options.max_attempts,
        AT_LEAST_ONCE if options.delivery == "at_least_once" else AT_MOST_ONCE,
        0 if options.orphan == "cancel" else 1,
        root,
        parent,
    )
    if type(name) is not TaskName and isinstance(name, FilledName):
        name.fill(call)
    return call


async def carried_context(call: Call, codec: Codec, transport: Transport) -> dict[str, bytes] | None:
    """The context variables that travel with the call. Raises PayloadTooLarge, EncodeError."""
    here = contextvars.copy_context()
    context = {}
    for variable in carried.values():
        if variable in here:
            try:
                context[variable.name] = as_bytes(await codec.encode(here[variable]), codec)
            except Exception as error:
                from atasks.codecs.culprits import unencodable

                subject = f"the context variable {variable.name!r}, which travels with {call.task},"
                raise await unencodable(subject, here[variable], codec, error) from error
    size = len(call.payload) + sum(map(len, context.values()))
    if size > transport.max_payload:
        what = f"the arguments of {call.task} and the context variables that travel with them have"
        raise PayloadTooLarge(over_limit(what, size, transport.max_payload, "pass references instead"))
    return context or None


def _time_left(name: str, run: HeldCall, deadline: float, timeout: float | None) -> float:
    """The seconds for a call that `run` makes, which has no more than are left to `run`. Raises CallTimeout."""
    left = deadline - run.loop.time()
    if left <= 0:
        raise CallTimeout(f"no time is left for {name}: the deadline of {run.call.task} has passed")
    return left if timeout is None else min(timeout, left)
