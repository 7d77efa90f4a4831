"""The log of calls: one line of the logger `atasks.call` for each run that has ended, at its worker.

No line has arguments or results. What an exception says is in lines of calls that nobody may await.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from atasks import wire
from atasks.failures.failures import failure_text, raised_type
from atasks.wire import Call, Reply, Status

__all__ = ["log_end", "log_lost", "logger"]

logger = logging.getLogger("atasks.call")

NAMES: Final[dict[int, str]] = {
    value: name.lower() for name, value in vars(Status).items() if isinstance(value, int)
}
"""Values of `record.status`: the names of the statuses on the wire."""
LOST: Final = NAMES[Status.WORKER_LOST]
WITHDRAWN: Final = "withdrawn"
"""The status of a call whose await has ended before it."""


def log_end(
    call: Call, reply: Reply | None, *, worker: str, queue: str, ran: float | None, late: bool = False
) -> None:
    """A run has ended, with this reply; None: its await had ended before. `ran`: for how many seconds it ran;
    None: it had not begun. `late`: its deadline has passed."""
    code = Status.CANCELLED if reply is None else reply.status
    if reply is None and late:
        code = Status.TIMED_OUT
    if code == Status.VALUE or (reply is None and not late):
        level = logging.DEBUG
    elif code in (Status.RAISED, Status.CANCELLED) and not call.orphan:
        level = logging.INFO
    else:
        level = logging.WARNING
    if logger.isEnabledFor(level):
        status = WITHDRAWN if reply is None and not late else NAMES.get(code, str(code))
        _log(level, call, status, _why(code, reply, level), worker, queue, ran)


def log_lost(call: Call, reply: Reply, *, queue: str = "") -> None:
    """The worker of a call is dead, and it will not run again."""
    if logger.isEnabledFor(logging.WARNING):
        ending = wire.ending(reply)
        ran = None if ending.ran_ms < 0 else ending.ran_ms / 1000
        _log(logging.WARNING, call, LOST, (ending.message, None), ending.worker, queue, ran)


def _why(code: int, reply: Reply | None, level: int) -> tuple[str, str | None]:
    """Why it ended so, and the traceback, if there is one that belongs into the log."""
    if reply is None or code == Status.VALUE:
        return "", None
    if code != Status.RAISED:
        return wire.ending(reply).message, None
    return raised_type(reply.payload), failure_text(reply.payload) if level >= logging.WARNING else None


def _log(
    level: int,
    call: Call,
    status: str,
    why: tuple[str, str | None],
    worker: str,
    queue: str,
    ran: float | None,
) -> None:
    reason, traceback = why
    run_ms = None if ran is None else round(ran * 1000, 3)
    wait_ms = max(0, round((time.time() - (ran or 0.0)) * 1000) - call.sent_ms)
    extra: dict[str, Any] = {
        "task": call.task,
        "call_id": call.id,
        "root_id": call.root or call.id,
        "parent_id": call.parent,
        "attempt": call.attempt,
        "worker": worker,
        "queue": queue,
        "wait_ms": wait_ms,
        "run_ms": run_ms,
        "status": status,
    }
    text = "%s, call %s: %s"
    values: list[Any] = [_one_line(call.task), call.id, status]
    if reason:
        text += " (%s)"
        values.append(_one_line(reason))
    if run_ms is None:
        text += "" if status == LOST else " before it began"
    else:
        text += " after %.1f ms"
        values.append(run_ms)
    record = logger.makeRecord(logger.name, level, __file__, 0, text, tuple(values), None, "_log", extra)
    record.exc_text = traceback
    logger.handle(record)


def _one_line(text: str) -> str:
    """The text as it is, unless it would begin another line or change a terminal: whoever may publish calls atasks
    by any name."""
    return text if text.isprintable() else repr(text)
