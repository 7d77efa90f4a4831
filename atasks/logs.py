"""Has the processes that a program starts log as it does: at its levels, to stderr, under a name of their own."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

__all__ = ["adopt", "levels"]


def levels() -> dict[str, Any]:
    """The levels of this process's loggers, as plain data for `adopt`."""
    root = logging.getLogger()
    handled = min((handler.level for handler in root.handlers), default=logging.WARNING)
    loggers = {
        name: logger.level
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {"root": root.level, "handled": handled, "disabled": root.manager.disable, "loggers": loggers}


def adopt(levels: dict[str, Any], name: str) -> None:
    """Log to stderr at these levels, and put the name and the pid into each line; not in a process whose own
    modules have said how it logs."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(levels["handled"])
    shown = name.replace("%", "%%")
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {shown} (pid {os.getpid()}) %(name)s: %(message)s")
    )
    root.addHandler(handler)
    root.setLevel(levels["root"])
    logging.disable(levels["disabled"])
    for logger, level in levels["loggers"].items():
        if not logging.getLogger(logger).level:
            logging.getLogger(logger).setLevel(level)
