"""The arguments of a call, from bytes, and its outcome, to bytes.

Used in processes of `executor="process"` too, whose start waits for what is imported here: not `asyncio`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from atasks import wire
from atasks.codecs import sizes
from atasks.codecs.base import Codec, as_bytes, ends_here, taken
from atasks.codecs.checked import undecodable
from atasks.current import carried
from atasks.errors import DecodeError
from atasks.wire import VERSION, Call, Reply, Status, describe

if TYPE_CHECKING:
    from atasks.transport.contract import Transport

__all__ = ["Inside", "decode_arguments", "raised", "returned"]

VALUE: Final = Status.VALUE

Inside = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Puts around a blocking function what the middlewares want around it in its thread."""


async def decode_arguments(call: Call, codec: Codec, function: Callable[..., Any]) -> tuple[Any, Any]:
    """The decoded arguments, with the carried context variables set; a DecodeError if that cannot be."""
    if call.codec != codec.name:
        raise DecodeError(
            f"{call.task} was called with codec {call.codec!r}, and this worker has {codec.name!r}: "
            "construct the same codec on both sides"
        )
    call.codec = codec.name  # of equal texts one is kept, however many calls wait
    try:
        if call.context:
            with sizes.together():
                for name, value in call.context.items():
                    variable = carried.get(name)
                    if variable is not None:
                        variable.set(await codec.decode(value))
        args, kwargs = await codec.decode_arguments(taken(call.payload, codec), function)
        return args, kwargs
    except BaseException as error:
        from atasks.codecs.culprits import brief  # for an error only, as below

        flaw = undecodable(f"the arguments of {call.task}", codec, error, brief(error))
        if flaw is None:
            raise
        raise flaw from error


async def raised(call: Call, codec: Codec, worker: str, error: BaseException, limit: int) -> Reply:
    """The reply of a function that raised: with the exception, or what of it has at most `limit` bytes."""
    from atasks.failures.failures import encode_failure

    hop = f"atasks: {describe(call)}, host {socket.gethostname()}, pid {os.getpid()}"
    payload = await encode_failure(error, codec, hop=hop, limit=limit)
    return Reply(VERSION, call.id, Status.RAISED, payload, codec.name, worker)


async def returned(
    call: Call, codec: Codec, worker: str, result: Any, transport: Transport | None = None
) -> Reply:
    """The reply of a function that returned; `transport`: it goes that way, and nowhere else."""
    try:
        payload = await codec.pieces(result)
        if type(payload) is not bytes:
            payload = as_bytes(payload, codec, bytes if transport is None else transport.keep)
    except BaseException as error:
        if ends_here(error):
            raise
        from atasks.codecs.culprits import unencodable

        refusal = await unencodable(f"the result of {call.task}", result, codec, error)
        return wire.ended(call.id, Status.ENCODE_ERROR, str(refusal), worker)
    return Reply(VERSION, call.id, VALUE, payload, codec.name, worker)
