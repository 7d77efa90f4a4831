"""Submitted calls and runs in words, for who looks at them: no arguments, and no results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from atasks import wire
from atasks.codecs import get_codec
from atasks.errors import RemoteError
from atasks.failures.failures import decode_failure, describe_failure
from atasks.submitted.handle import Handle
from atasks.wire import Status

if TYPE_CHECKING:
    from atasks.transport.records.contract import Record, RunInfo
    from atasks.wire import Reply

__all__ = ["describe_run", "moment", "row_of", "stages_done", "state_of"]

_ENDINGS: Final = {
    number: name.lower().replace("_", " ") for name, number in vars(Status).items() if isinstance(number, int)
}


def state_of(status: int | None) -> str:
    """Name the ending of this status; None: "open"."""
    return "open" if status is None else _ENDINGS.get(status, str(status))


def moment(seconds: float) -> str:
    """A time in seconds since 1970, as text: date and time of day, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def stages_done(run_id: str, record: Record) -> tuple[int, int]:
    """The number of stages of a run whose results are on record, and of all its stages; (0, 0): it is a call."""
    task_ids = Handle[Any](run_id).task_ids
    ending = record.ending
    done = sum(task_id in record.replies for task_id in task_ids)
    if task_ids and ending is not None and ending.status == Status.VALUE:
        done += 1  # the result of the last one is the run's own
    return done, len(task_ids)


def row_of(info: RunInfo) -> dict[str, Any]:
    """Name -> what a list of submitted calls says of one of them, as plain data."""
    return {
        "id": info.id,
        "task": info.task,
        "queue": info.queue,
        "submitted": info.submitted,
        "due": info.due,
        "ended": info.ended,
        "state": state_of(info.status),
        "worker": info.worker,
    }


async def describe_run(run_id: str, record: Record) -> dict[str, Any]:
    """Name -> what is known of a submitted call, or a run of a pipeline. Nothing is imported for it."""
    call, ending = record.call, record.ending
    done, stages = stages_done(run_id, record)
    return {
        "id": record.id,
        "task": call.task,
        "queue": record.head.queue,
        "submitted": moment(call.sent_ms / 1000),
        "kept for": f"{record.expires:g} s unused",
        "state": state_of(None if ending is None else ending.status),
        "worker": None if ending is None else ending.worker or None,
        **({"stages": f"{done} of {stages} on record"} if stages else {}),
        "failure": None if ending is None or ending.status == Status.VALUE else await _failure(ending),
    }


async def _failure(ending: Reply) -> str:
    """Describe an ending that is no value. No class of the fleet is imported for it."""
    if ending.status != Status.RAISED:
        return wire.ending(ending).message
    try:
        error = await decode_failure(describe_failure(ending.payload), get_codec())
    except ValueError as unreadable:
        return f"an exception that cannot be read: {unreadable}"
    if isinstance(error, RemoteError):
        return f"{error}\n{error.traceback}".rstrip()
    return f"{type(error).__name__}: {error}"
