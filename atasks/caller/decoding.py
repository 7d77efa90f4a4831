"""The values and the exceptions that replies stand for."""

from __future__ import annotations

import time
from typing import Any, Final

from atasks import wire
from atasks.codecs.base import Codec, taken
from atasks.codecs.checked import undecodable
from atasks.definitions import BaseTask
from atasks.errors import (
    CallCancelled,
    CallError,
    CallTimeout,
    DecodeError,
    EncodeError,
    PayloadTooLarge,
    UnknownTask,
    WorkerLost,
)
from atasks.failures.failures import decode_failure
from atasks.transport.whereabouts import last_seen, lost_at, timed_out, whereabouts_by
from atasks.wire import Call, Reply, Status

__all__ = ["check_codec", "reply_error", "value_of"]

VALUE: Final = Status.VALUE
EARLY_SECONDS: Final = 0.5
"""A worker ends a call so long before its deadline only if its clock is wrong."""


async def value_of(reply: Reply, call: Call, task: BaseTask[..., Any] | None, codec: Codec) -> Any:
    """Return the value of a reply, or raise the exception that it stands for; `task`: the atask, if it is known
    here. Raises DecodeError if it cannot be read."""
    if reply.status != VALUE:
        raise await reply_error(reply, call, codec)
    if reply.codec != codec.name:
        check_codec(reply, call, codec)
    try:
        payload = taken(reply.payload, codec)
        if task is None:
            return await codec.decode(payload)
        return await codec.decode_result(payload, task.local)
    except BaseException as error:
        flaw = undecodable(f"the result of {call.task}", codec, error, type(error).__name__)
        if flaw is None:
            raise
        raise flaw from error


async def reply_error(reply: Reply, call: Call, codec: Codec) -> BaseException:
    """Return the exception that a reply without a value stands for. Raises DecodeError if it cannot be read."""
    if reply.status == Status.RAISED:
        check_codec(reply, call, codec)
        return await decode_failure(reply.payload, codec)
    ending = wire.ending(reply)
    message = ending.message
    match reply.status:
        case Status.WORKER_LOST:
            return lost_at(WorkerLost(message, ending.attempts), last_seen(ending))
        case Status.CANCELLED:
            return CallCancelled(message)
        case Status.TIMED_OUT:
            return _timed_out(call, reply, message)
        case Status.UNKNOWN_TASK:
            return UnknownTask(message)
        case Status.ENCODE_ERROR:
            return EncodeError(message)
        case Status.DECODE_ERROR:
            return DecodeError(message)
        case Status.TOO_LARGE:
            return PayloadTooLarge(message)
        case Status.FAILED:
            return CallError(message)
        case _:
            return CallError(f"{call.task} ended with status {reply.status}, which this version does not know")


def check_codec(reply: Reply, call: Call, codec: Codec) -> None:
    """Raise DecodeError if the worker has another codec than this side."""
    if reply.codec != codec.name:
        raise DecodeError(
            f"the reply to {call.task} is encoded by {reply.codec!r}, and this side has {codec.name!r}: "
            "construct the same codec on both sides"
        )


def _timed_out(call: Call, reply: Reply, message: str) -> CallTimeout:
    """The error of a call that its worker ended at its deadline, which is here now, if their clocks agree."""
    if call.timeout_ms is None:
        return CallTimeout(message)
    early = call.timeout_ms / 1000 - (time.time() - call.sent_ms / 1000)
    if early < EARLY_SECONDS:
        return timed_out(call, whereabouts_by(reply))
    return CallTimeout(
        f"worker {reply.worker} took the deadline of {call.task} for passed, {early:.1f} s before it is: "
        "set the clocks of its host and of this one right"
    )
