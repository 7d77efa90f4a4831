"""Exit codes of the command, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum

from atasks.errors import (
    AccessRefused,
    ConnectFailed,
    InvalidKeys,
    InvalidName,
    InvalidURL,
    ListenFailed,
    LoadError,
    NotSupported,
    QueueMismatch,
    TransportError,
    WorkersFailed,
)

__all__ = ["MEANINGS", "CommandError", "Exit", "explain"]


class Exit(IntEnum):
    """The exit codes of the command. A second signal ends it at once, with 128 + the signal's number."""

    OK = 0
    FAILED = 1
    USAGE = 2
    LOAD = 3
    UNREACHABLE = 4
    REFUSED = 5
    LOST = 6
    MISMATCH = 7
    WORKERS = 8
    LISTEN = 9
    INTERNAL = 70
    HUNG_UP = 129
    INTERRUPTED = 130
    UNREAD = 141
    TERMINATED = 143


MEANINGS = {
    Exit.OK: "every aiomain() returned, or a signal stopped the server and it drained",
    Exit.FAILED: "an aiomain() raised; its traceback was shown",
    Exit.USAGE: "a wrong command line, nothing to run or to serve in the modules, or what the transport cannot do",
    Exit.LOAD: "a module cannot be loaded",
    Exit.UNREACHABLE: "the broker, or the server at a socket, cannot be reached",
    Exit.REFUSED: "the broker refuses the user or the virtual host, or the socket is another user's",
    Exit.LOST: "the connection was lost for good while serving",
    Exit.MISMATCH: "a queue exists at the broker with other arguments",
    Exit.WORKERS: "the worker processes of --workers die faster than they start",
    Exit.LISTEN: "this process cannot serve at the socket: another one does, or the path cannot be used",
    Exit.INTERNAL: "an error of atasks itself: please report it",
    Exit.HUNG_UP: "hung up (SIGHUP: the terminal was closed), in loopback and client mode",
    Exit.INTERRUPTED: "interrupted (Ctrl-C), in loopback and client mode",
    Exit.UNREAD: "nobody reads the output any more, as behind `| head -1`",
    Exit.TERMINATED: "terminated (SIGTERM), in loopback and client mode",
}


class CommandError(Exception):
    """Ends the command with one line on stderr and an exit code."""

    def __init__(self, exit: Exit, message: str) -> None:
        super().__init__(message)
        self.exit = exit


def explain(error: Exception) -> CommandError:
    """Return the message of the command for an error that came out of the library before or while it served."""
    message = " ".join(str(error).split())
    source = "--records or $ATASKS_RECORDS" if message.startswith("the records at ") else "--url or $ATASKS_URL"
    match error:
        case LoadError():
            return CommandError(Exit.LOAD, message)
        case InvalidURL() | InvalidName() | InvalidKeys() | NotSupported():
            return CommandError(Exit.USAGE, message)
        case AccessRefused():
            return CommandError(Exit.REFUSED, f"{message} ({source})")
        case ConnectFailed():
            return CommandError(Exit.UNREACHABLE, f"{message} ({source})")
        case ListenFailed():
            return CommandError(Exit.LISTEN, message)
        case QueueMismatch():
            return CommandError(Exit.MISMATCH, message)
        case WorkersFailed():
            return CommandError(Exit.WORKERS if error.code is None else Exit(error.code), message)
        case TransportError():
            return CommandError(Exit.LOST, message)
        case _:
            return CommandError(
                Exit.INTERNAL, f"internal error, {type(error).__name__}: {message}; -vv shows where it came from"
            )
