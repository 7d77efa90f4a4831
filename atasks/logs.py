"""Has the processes that a program starts log as it does: at its levels, to stderr, under a name of their own."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any, Final

__all__ = ["JsonFormatter", "adopt", "configure", "levels", "name_process", "text_formatter"]

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has."""


class JsonFormatter(logging.Formatter):
    """Makes a JSON object of each record, on one line.

    It has `time`, `level`, `logger`, `message`, `process` (the name), `pid`, all attributes that were given as
    `extra=`, and `exception`, the traceback. What JSON lacks is written as `repr()` says.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        import json  # for those lines only

        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{second}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.processName,
            "pid": record.process,
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _PLAIN and name not in line}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, default=repr, ensure_ascii=False)


_config: dict[str, Any] | None = None
"""The dictionary that `configure` was given."""


def configure(config: dict[str, Any]) -> None:
    """Log as this mapping says (see `logging.config.dictConfig`), and so the processes that are started.

    Loggers that exist already are not disabled, unless it says so. Raises what `dictConfig` raises.
    """
    global _config
    import logging.config  # which most programs need not wait for

    if isinstance(config, dict):
        config = {"disable_existing_loggers": False, **config}
    logging.config.dictConfig(config)
    _config = config


def name_process(name: str) -> None:
    """Set the name of this process in the lines of logs: `%(processName)s`."""
    import multiprocessing  # which most programs need not wait for

    multiprocessing.current_process().name = name


def levels() -> dict[str, Any]:
    """Return the logging of this process, as plain data for `adopt`."""
    root = logging.getLogger()
    handled = min((handler.level for handler in root.handlers), default=logging.WARNING)
    loggers = {
        name: logger.level
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {
        "root": root.level,
        "handled": handled,
        "disabled": root.manager.disable,
        "loggers": loggers,
        "json": any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers),
        "config": _config,
    }


def adopt(levels: dict[str, Any], name: str) -> None:
    """Log to stderr at these levels, and put the name and the pid into each line; not in a process whose own
    modules have said how it logs."""
    name_process(name)
    root = logging.getLogger()
    if root.handlers:
        return
    if levels["config"] is not None:
        configure(levels["config"])
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(levels["handled"])
    handler.setFormatter(JsonFormatter() if levels["json"] else text_formatter(name, pid=True))
    root.addHandler(handler)
    root.setLevel(levels["root"])
    logging.disable(levels["disabled"])
    for logger, level in levels["loggers"].items():
        if not logging.getLogger(logger).level:
            logging.getLogger(logger).setLevel(level)


def text_formatter(name: str = "", *, pid: bool = False) -> logging.Formatter:
    """Makes lines of text, with this name of the process, and with its pid."""
    process = f"{name.replace('%', '%%')} " if name else ""
    if pid:
        process += f"(pid {os.getpid()}) "
    return logging.Formatter(f"%(asctime)s %(levelname)s {process}%(name)s: %(message)s")
