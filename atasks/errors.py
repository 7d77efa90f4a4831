"""Every error that atasks raises.

    AtasksError
    ├── CallError                       an await that ended with neither a value nor the atask's own exception
    │   ├── RemoteError                 it raised something that cannot be rebuilt here
    │   ├── CallTimeout                 (TimeoutError) the deadline of the call passed
    │   ├── CallCancelled               it was cancelled at the worker, not by the awaiting task
    │   ├── TooManyParked               a nested await past the worker's bound of parked calls
    │   ├── UnknownTask                 (LookupError) a worker answered that it has no such atask
    │   ├── NoWorker                    on_no_worker="error" and nothing serves the queue
    │   ├── WorkerLost                  the worker died; the call may or may not have run and will not run again
    │   ├── StreamLost                  the worker of a stream died, and the stream may not begin anew
    │   ├── QueueFull                   the broker refused the request
    │   ├── CallRefused                 the broker closes the channel over the request
    │   ├── CallConnectionLost          (ConnectionError) the outcome cannot be known
    │   ├── RecordsUnavailable          (ConnectionError) the database of the records is away, or refuses one
    │   ├── EncodeError                 (TypeError) an argument or a result cannot be encoded
    │   ├── DecodeError                 (ValueError) an argument, a result or an envelope cannot be decoded
    │   └── PayloadTooLarge             (ValueError) an argument list or a result over the transport's limit
    ├── TransportError                  a transport could not do what it was asked
    │   ├── NotConnected                (RuntimeError) no transport in this event loop and namespace
    │   ├── NotSupported                (RuntimeError) the transport does not offer what the call needs
    │   ├── InvalidName                 (ValueError) a name that is too long for the broker
    │   ├── InvalidURL                  (ValueError) a URL that names no transport, or says it wrongly
    │   ├── InvalidKeys                 (ValueError) a file of keys that cannot be used
    │   ├── ConnectFailed               (ConnectionError) the other side cannot be reached
    │   │   └── AccessRefused           (PermissionError) it was reached, and refuses the user or the virtual host
    │   ├── ListenFailed                (OSError) this process cannot listen at the path of a socket
    │   └── QueueMismatch               a queue exists with other arguments
    ├── PipelineError                   (RuntimeError) a pipeline could not do what it was asked
    │   ├── AbortPipeline               raised by a stage's function to end the run, whatever its stage skips
    │   └── UnknownRun                  (LookupError) nothing is kept of this run: it may have expired
    ├── LimitError                      (ValueError) a limit that is in use with another value, or too many keys
    ├── RetryAfter                      raised by an atask: try again, and not sooner than so many seconds from now
    ├── AlreadySubmitted                (RuntimeError) on_conflict="error" and the key of a submitted call is taken
    ├── CannotRetry                     (RuntimeError) h.retry() of a submitted call that has not failed
    ├── Diverged                        (RuntimeError) a call that resumes does not do what its last run did
    ├── RegisteringTwice                (AttributeError) two definitions under one name
    ├── LoadError                       (ImportError) a module given to the command line cannot be loaded
    ├── WorkersFailed                   a supervisor gave up: its worker processes cannot serve
    └── RemoteTraceback                 never raised: the worker's traceback, as the cause of a rebuilt exception

Messages say what to do next and never contain payloads. Every class survives pickling with its attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

__all__ = [
    "AbortPipeline",
    "AccessRefused",
    "AlreadySubmitted",
    "AtasksError",
    "CallCancelled",
    "CallConnectionLost",
    "CallError",
    "CallRefused",
    "CallTimeout",
    "CannotRetry",
    "ConnectFailed",
    "DecodeError",
    "Diverged",
    "EncodeError",
    "InvalidKeys",
    "InvalidName",
    "InvalidURL",
    "LimitError",
    "ListenFailed",
    "LoadError",
    "NoWorker",
    "NotConnected",
    "NotSupported",
    "PayloadTooLarge",
    "PipelineError",
    "QueueFull",
    "QueueMismatch",
    "RecordsUnavailable",
    "RegisteringTwice",
    "RemoteError",
    "RemoteTraceback",
    "RetryAfter",
    "StreamLost",
    "TooManyParked",
    "TransportError",
    "UnknownRun",
    "UnknownTask",
    "WorkerLost",
    "WorkersFailed",
]


class AtasksError(Exception):
    """The base of every error that atasks raises."""


class CallError(AtasksError):
    """An await that ended with neither a value nor the atask's own exception."""

    call_id: str | None = None
    """The id of the call. Every exception of a call has it, the atask's own too, unless its class has no room for
    it, or an attribute of that name. One that passes on through calls keeps the id of the innermost."""
    waited_for: Literal["connection", "worker", "resume", "turn", "run"] | None = None
    """The thing that the call waited for when it was last seen, of a `CallTimeout`, `WorkerLost`, `StreamLost` or
    `CallConnectionLost`: "connection" (there was none, or the broker took nothing, as under an alarm), "worker"
    (nothing served its queue), "resume" (its queue was paused), "turn" (it waited in its queue, or at a worker for
    a slot) or "run" (it ran); None: it is not known."""
    worker: str | None = None
    """The id of the worker that had it; None: none had, or it is not known."""
    ran: float | None = None
    """Seconds for which it had run; None: it had not begun, or it is not known."""
    awaited: str | None = None
    """The id of a call that its run awaited; None: it awaited none, or it is not known."""


class RemoteError(CallError):
    """The atask raised something that cannot be rebuilt here.

    Its class cannot be imported or its values cannot be pickled here, or it was a `BaseException` that would
    end this program (`SystemExit`, `KeyboardInterrupt`, `GeneratorExit`). The worker lives on.
    """

    def __init__(self, type_name: str, message: str = "", traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        """`module.qualname` of the class that was raised."""
        self.message = message
        """`str()` of what was raised."""
        self.traceback = traceback
        """The worker's traceback, as text."""

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class CallTimeout(CallError, TimeoutError):
    """The deadline of the call passed: its own `timeout`, or one inherited from the call that made it.

    The remote run is cancelled, on a best effort; it may have finished.

    `waited_for`, `worker`, `ran` and `awaited` say where the call was at most half a second before, as far as that
    is known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        waited_for: Literal["connection", "worker", "resume", "turn", "run"] | None = None,
        worker: str | None = None,
        ran: float | None = None,
        awaited: str | None = None,
    ) -> None:
        super().__init__(message)
        self.waited_for = waited_for
        self.worker = worker
        self.ran = ran
        self.awaited = awaited


class CallCancelled(CallError):
    """The call was cancelled at the worker by someone else, or raised `CancelledError` itself.

    The awaiting task was not cancelled: that would be an `asyncio.CancelledError`.
    """


class TooManyParked(CallError):
    """A nested await in a worker that holds as many parked calls as it may. Nothing was sent."""


class UnknownTask(CallError, LookupError):
    """A worker answered that it has no atask of this name. The call did not run."""


class NoWorker(CallError):
    """`on_no_worker="error"`, and nothing serves the queue. The call did not run."""


class WorkerLost(CallError):
    """The worker died, or its process for a blocking function. The call may or may not have run, and will not run
    again."""

    def __init__(self, message: str = "", attempts: int = 1) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts
        """The number of deliveries of the call that a worker did not survive."""

    def __str__(self) -> str:
        return str(self.args[0])


class StreamLost(CallError):
    """The worker of a stream died, or was shut down, and the stream may not begin anew: see `replayable`.

    It comes after the items that arrived.
    """

    def __init__(self, message: str = "", items: int = 0) -> None:
        super().__init__(message, items)
        self.items = items
        """The number of items that had arrived."""

    def __str__(self) -> str:
        return str(self.args[0])


class QueueFull(CallError):
    """The broker refused the request: the work queue is full, or has no leader. It refused an at-least-once call
    four times, over two seconds. The call did not run."""


class CallRefused(CallError):
    """The broker closes the channel over the request, or it cannot be written as a message: the text says why. The
    call did not run."""


class CallConnectionLost(CallError, ConnectionError):
    """The connection was lost, the outcome cannot be known, and the call may not be sent again."""


class RecordsUnavailable(CallError, ConnectionError):
    """The database that keeps records was away for the `timeout` of the transport, or refuses a record: the text
    says why. A call that was being submitted was not: nothing of it runs."""


class EncodeError(CallError, TypeError):
    """The codec cannot encode an argument (nothing was sent) or the result (the call did run)."""


class DecodeError(CallError, ValueError):
    """An argument (the call did not run), a result (it did) or an envelope cannot be decoded."""


class PayloadTooLarge(CallError, ValueError):
    """An argument list (nothing was sent) or a result (the call did run) over the transport's limit."""


class TransportError(AtasksError):
    """A transport could not do what it was asked."""


class NotConnected(TransportError, RuntimeError):
    """No transport in this event loop and namespace: enter `atasks.connect(url)` first, or
    `atasks.connect_sync(url)` where there is no event loop."""


class NotSupported(TransportError, RuntimeError):
    """The transport does not offer what the call needs. Nothing was sent."""


class InvalidName(TransportError, ValueError):
    """Prefix, namespace and queue make names that the broker does not take: too long ones, or ones that begin with
    `amq.`. Nothing was sent."""


class InvalidURL(TransportError, ValueError):
    """A URL that names no transport, or says it wrongly."""


class InvalidKeys(TransportError, ValueError):
    """A file of keys cannot be used: it is not there, others can read it, or a line is not a key's."""


class ConnectFailed(TransportError, ConnectionError):
    """The other side cannot be reached."""


class AccessRefused(ConnectFailed, PermissionError):
    """The other side was reached, and refuses the user or the virtual host."""


class ListenFailed(TransportError, OSError):
    """This process cannot listen at the path of a socket: another one does, or the path cannot be used."""


class QueueMismatch(TransportError):
    """A queue, or the exchange of control messages, exists and was declared otherwise than this program wants. The
    message says which, and what to do."""


class PipelineError(AtasksError, RuntimeError):
    """A pipeline could not do what it was asked, for a reason that is not an exception of a stage's function."""


class AbortPipeline(PipelineError):
    """Raise it in a stage's function to end the run, also where the stage skips errors. The consumer gets it."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        """Why; also the message."""


class UnknownRun(PipelineError, LookupError):
    """Nothing is kept of a submitted call or run: it has expired, was submitted with `keep=0`, or never here."""


class CannotRetry(AtasksError, RuntimeError):
    """The submitted call or run has not failed: it waits or runs still, has ended well, or was cancelled. The text
    says which. Nothing was submitted."""


class Diverged(AtasksError, RuntimeError):
    """A call that resumes, with `resume="strict"`, made a call that the run before it did not make, while results
    of that run were left over: the code or its inputs have changed. Also: it reads a stream again that cannot be
    replayed."""


class AlreadySubmitted(AtasksError, RuntimeError):
    """`on_conflict="error"`, and the first call with this `unique` key waits or runs, or its record is kept.
    Nothing was submitted."""


class LimitError(AtasksError, ValueError):
    """A limit cannot be used as it is said here: it is in use with another value elsewhere, which the text names,
    with more keys than it may have at a time, or its key cannot be had. The call did not run."""


class RetryAfter(AtasksError):
    """Raise it in an atask that should be tried again so many seconds from now, whatever its `Retry` says about
    pauses. Raise it `from` the reason. Without a `retry`, and after the last try, the caller gets it."""

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"RetryAfter takes a number of seconds, not {seconds!r}")
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"RetryAfter({seconds!r}): seconds, 0 or more")
        super().__init__(seconds)
        self.seconds = float(seconds)
        """After how many seconds the next try may begin."""

    def __str__(self) -> str:
        return f"try again in {self.seconds:g} s"


class RegisteringTwice(AtasksError, AttributeError):
    """Two different definitions under one name in one namespace."""


class LoadError(AtasksError, ImportError):
    """A module given to the command line cannot be loaded."""


class WorkersFailed(AtasksError):
    """A supervisor gave up: its worker processes cannot serve, or die faster than they start."""

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message, code)
        self.code = code
        """The exit code of the process that said that it cannot serve; None where none said so."""

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteTraceback(AtasksError):
    """The worker's traceback, as the `__cause__` of a rebuilt exception. It is never raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text.rstrip("\n")


def name_call(error: BaseException, call_id: str) -> None:
    """Put the id of the call onto its exception, unless it has one."""
    with suppress(Exception):  # it may have slots, or properties that raise
        if getattr(error, "call_id", None) is None:
            error.call_id = call_id  # type: ignore[attr-defined]


def closest(word: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known words that resemble `word` most, best first: for messages that suggest what was meant."""
    import difflib  # slow to import, and only errors need it

    return difflib.get_close_matches(word, list(known), n=limit, cutoff=0.5)
