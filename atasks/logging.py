"""Logs of programs that use atasks: which call a line was written in, and lines as JSON."""

from __future__ import annotations

import logging
from typing import Any

from atasks.current import current_call
from atasks.logs import JsonFormatter

__all__ = ["CallFilter", "JsonFormatter", "call_fields"]


def call_fields() -> dict[str, Any]:
    """Return fields for the lines of a log, of the call that the asking code serves: `call_id`, `task`,
    `root_id`, `parent_id`, `attempt` and `queue`. Outside of a call every value is None."""
    call = current_call()
    return {
        "call_id": call.id,
        "task": call.name,
        "root_id": call.root_id,
        "parent_id": call.parent_id,
        "attempt": call.attempt,
        "queue": call.queue,
    }


class CallFilter(logging.Filter):
    """Puts the fields of the current call onto each record, as attributes, and lets every record pass.

    Add it to a handler, so that it sees the records of all loggers: `handler.addFilter(CallFilter())`. Records
    that have such attributes already, as those of the logger `atasks.call`, keep theirs.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields. Always True."""
        for name, value in call_fields().items():
            if name not in record.__dict__:
                record.__dict__[name] = value
        return True
