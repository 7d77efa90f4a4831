"""Output of the command on stderr: single lines, logs, and tracebacks without its own frames."""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import select
import sys
import traceback
from typing import Any, TextIO

import click

import atasks
from atasks import logs, urls
from atasks.logging import CallFilter, JsonFormatter
from atasks_cli.exits import CommandError, Exit
from atasks_cli.shown import clean

__all__ = ["configure_logging", "discard_output", "output_is_unread", "say", "show_traceback", "shown_url"]

CLIENT_LIBRARIES = ("aio_pika", "aiormq", "pamqp")

_OWN = tuple(
    os.path.join(os.path.dirname(os.path.realpath(str(file))), "")
    for file in (atasks.__file__, __file__, click.__file__)
)


def say(message: str) -> None:
    """One line of what can be printed, on stderr, whatever the log level. Never raises: nobody may read it."""
    _write(f"atasks: {clean(message)}\n")


def output_is_unread() -> bool:
    """Tell whether stdout is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no stdout, or one that is no file
        return False


def discard_output() -> None:
    """Send what is still to be written to stdout nowhere: Python would complain of it when it ends."""
    _discard(sys.stdout)


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # it has no reader, or is closed, or there is none
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def configure_logging(
    verbosity: int,
    *,
    level: str | None = None,
    as_json: bool = False,
    config: str | None = None,
    worker: int | None = None,
) -> None:
    """Warnings and worse to stderr; with -v also what happens, with -vv everything. Raises a CommandError.

    `level` says it by name; `as_json` writes lines of JSON; `config` is a file that says all of it; `worker` is
    the number of this worker process, if it is one: its supervisor puts that before each line that is no JSON.

    A module that calls `logging.basicConfig` itself has its way: what was configured here then yields.

    The client libraries log what atasks reports itself, with tracebacks of their own: only -vv shows it. What they
    log of each frame has the payloads, and is shown only if $ATASKS_LOG_FRAMES is 1 as well.
    """
    if worker is not None:
        logs.name_process(f"worker {worker}")
    if config is not None:
        _configure_by(config)
        return
    least = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    if level is not None:
        least = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logs.text_formatter(pid=worker is not None))
    if as_json:
        handler.addFilter(CallFilter())
    logging.basicConfig(level=least, handlers=[handler], force=True)
    original = logging.basicConfig

    def yielding(**options: Any) -> None:
        logging.getLogger().removeHandler(handler)
        logging.basicConfig = original
        original(**options)

    logging.basicConfig = yielding
    for library in CLIENT_LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1 if least > logging.DEBUG else _of_clients())


def _of_clients() -> int:
    """The level of the client libraries where everything is logged."""
    return logging.DEBUG if os.environ.get("ATASKS_LOG_FRAMES") == "1" else logging.INFO


def _configure_by(path: str) -> None:
    """Log as the file says, which has a mapping for `logging.config.dictConfig`, in TOML or JSON."""
    import tomllib  # for this alone

    try:
        with open(path, "rb") as file:
            text = file.read().removeprefix(codecs.BOM_UTF8)  # some editors put that before the text
        content = tomllib.loads(text.decode()) if path.endswith(".toml") else json.loads(text)
        logs.configure(content)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"--log-config {path}: it cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, AttributeError, ImportError, RecursionError) as error:
        cause = error.__cause__ or error
        said = f"{error} ({type(cause).__name__}: {cause})" if cause is not error else f"{error}"
        raise CommandError(
            Exit.USAGE,
            f"--log-config {path}: {said}; it has to be what logging.config.dictConfig takes, as TOML or JSON",
        ) from error


def show_traceback(error: BaseException, *, whole: bool = False) -> None:
    """The traceback of an error and of its causes; without the frames of atasks and click unless `whole`."""
    shown = traceback.TracebackException.from_exception(error)
    if not whole:
        _trim(shown, set())
    _write("".join(shown.format()))


def _trim(shown: traceback.TracebackException, seen: set[int]) -> None:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    kept = [frame for frame in shown.stack if not os.path.realpath(frame.filename).startswith(_OWN)]
    shown.stack = traceback.StackSummary.from_list(kept)
    for other in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if other is not None:
            _trim(other, seen)


def shown_url(url: str) -> str:
    """The URL without user, password and query: what may appear on a terminal or in a log."""
    text = urls.shown(url).replace("…@", "", 1)
    return f"{text}/" if text.count("/") == 2 and "://" in text else text
