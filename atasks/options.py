"""The options of an atask: what they are, what values they take, and their defaults."""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final, Literal, TypedDict

from atasks.checks import (
    MAX_TIMEOUT,
    validate_count,
    validate_integer,
    validate_name,
    validate_number,
    validate_queue,
    validate_seconds,
    validate_timeout,
)
from atasks.errors import closest
from atasks.policies.limit import Limit
from atasks.policies.retry import Retry

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_TIMEOUT",
    "AMQPOptions",
    "CallOptions",
    "ConnectOptions",
    "DecorationOptions",
    "LocalOptions",
    "PrivateOptions",
    "TaskOptions",
    "TransportOptions",
    "ViewOptions",
    "WorkerOptions",
    "validate_count",
    "validate_name",
    "validate_queue",
    "validate_seconds",
]


class CallOptions(TypedDict, total=False):
    """Options that both `@atask(...)` and `.options(...)` take."""

    queue: str | None
    timeout: float | None
    delivery: Literal["at_least_once", "at_most_once"]
    max_attempts: int
    on_no_worker: Literal["wait", "error"]
    orphan: Literal["cancel", "run"]
    priority: int
    batch: Literal["auto", False] | int
    durable: bool
    window: int | None
    replayable: bool
    retry: Retry | None
    keep: float | None
    on_conflict: Literal["join", "skip", "error"]


class ViewOptions(CallOptions, total=False):
    """Options that `.options(...)` takes: those of every call, and those of one submitted call."""

    delay: float | None
    at: datetime | None
    unique: str | None
    key: str | None


Executor = Literal["thread", "process"]
"""The kinds of executors of blocking functions."""
EXECUTORS: Final[tuple[Executor, ...]] = ("thread", "process")


class DecorationOptions(CallOptions, total=False):
    """Options that `@atask(...)` takes besides `name` and `namespace`."""

    executor: Executor | None
    limit: Limit | None
    resume: bool | str
    every: float | str
    tz: str
    catch_up: bool
    overlap: Literal["skip", "allow"]


class AMQPOptions(TypedDict, total=False):
    """Options that `connect` and `serve` take for RabbitMQ: the arguments of `AMQPTransport`."""

    prefix: str
    queue: str
    queue_type: Literal["classic", "quorum"]
    max_priority: int | None
    timeout: float
    consumer_timeout: float
    keep_runs: float
    records: str | None
    keys: str | os.PathLike[str] | None
    unsealed: Literal["refuse", "accept"]


class LocalOptions(TypedDict, total=False):
    """Options that `connect` and `serve` take for worker processes of one host: the arguments of
    `LocalTransport`."""

    hub: bool | None
    queue: str
    modules: Sequence[str] | None
    timeout: float
    keep_runs: float
    keep_bytes: int


class WorkerOptions(TypedDict, total=False):
    """Options of the worker processes of a program: see `atasks.serve`."""

    concurrency: int
    max_parked: int
    grace: float
    threads: int | None
    processes: int | None
    process_setup: str | None


class PrivateOptions(LocalOptions, WorkerOptions, total=False):
    """Options that `local` takes besides its own arguments."""


class TransportOptions(AMQPOptions, LocalOptions, total=False):
    """Options that `serve` takes besides its own arguments."""

    workers: int | None


class ConnectOptions(TransportOptions, WorkerOptions, total=False):
    """Options that `connect` takes besides the URL and the namespace."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of one atask, or of a re-optioned view of it; every value is valid."""

    queue: str | None = None
    """The work queue; None: the transport's default."""
    timeout: float | None = None
    """Seconds for the whole call; None: no deadline of its own."""
    delivery: Literal["at_least_once", "at_most_once"] = "at_least_once"
    max_attempts: int = 3
    """The number of workers that may die with the call before it ends in `WorkerLost`."""
    on_no_worker: Literal["wait", "error"] = "wait"
    orphan: Literal["cancel", "run"] = "cancel"
    """The fate of a run whose caller is gone."""
    priority: int = 0
    """0..3, on queues that workers declare with `max_priority`."""
    batch: Literal["auto", False] | int = "auto"
    """Which calls may share a message: "auto" (calls of atasks that do little work and are made together), False
    (none), or a number (up to so many share one, however long they run)."""
    durable: bool = True
    """True if the request survives a restart of the broker."""
    executor: Executor | None = None
    """The executor of a blocking function at the worker; None: its event loop."""
    limit: Limit | None = None
    """The limit of which a worker takes a token before the body begins; None: no limit."""
    resume: bool | str = False
    """True if a run goes on where the one before it ended: calls that it has made are not made again. "strict": it
    ends in `Diverged` if it makes others. Any other text: the same as True, and the version of the code, so that
    what another version has done does not count."""
    key: str | None = None
    """The name of this call within a call that resumes, instead of its arguments; None: its arguments name it."""
    window: int | None = None
    """Streams: items that the worker may run ahead of the consumer; None: `FIRST_WINDOW`, and up to
    `WIDEST_WINDOW` where the consumer takes them faster than they come."""
    replayable: bool = False
    """Streams: whether another worker may begin anew when the first one dies, because it yields the same items."""
    retry: Retry | None = None
    """Which endings are worth another try, and when; None: none is."""
    keep: float | None = None
    """Submitted calls: seconds for which the result is kept after it was last used; 0: there is no record; None:
    the transport's `keep_runs`."""
    on_conflict: Literal["join", "skip", "error"] = "join"
    """Submitted calls with `unique`: what a submission does that finds its key taken."""
    delay: float | None = None
    """Submitted calls: seconds after which the call may begin."""
    at: datetime | None = None
    """Submitted calls: when the call may begin."""
    unique: str | None = None
    """Submitted calls: the key of which there is one call of this atask at a time."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options that a Router subclass declares."""
    viewer: Callable[[Any], object] | None = None
    """Called with each `Progress` of this one call that arrives; None: its caller does not watch it."""

    def with_changes(self, changes: Mapping[str, Any], extra_names: tuple[str, ...] = ()) -> "TaskOptions":
        """These options with changes: TypeError for an unknown name, ValueError or TypeError for a bad value."""
        known: dict[str, Any] = {}
        extra = dict(self.extra)
        for name, value in changes.items():
            if name in extra_names:
                extra[name] = value
            elif name in _NAMES:
                known[name] = (_check_submission if name in _SUBMISSION else _check)(name, value)
            else:
                raise TypeError(_unknown(name, extra_names))
        changed = replace(self, **known, extra=extra)
        if changed.delay is not None and changed.at is not None:
            raise ValueError("delay= and at= both say when a call may begin: give one of them")
        return changed

    @property
    def only_submits(self) -> bool:
        """True if a call with these options can be submitted, and not awaited."""
        return self.delay is not None or self.at is not None or self.unique is not None


_NAMES: Final = tuple(item.name for item in fields(TaskOptions) if item.name not in ("extra", "viewer"))
_CHOICES: Final = {
    "delivery": ("at_least_once", "at_most_once"),
    "on_no_worker": ("wait", "error"),
    "orphan": ("cancel", "run"),
    "executor": (None, *EXECUTORS),
    "on_conflict": ("join", "skip", "error"),
}
_UNNAMED: Final[dict[str, tuple[Any, ...]]] = {"resume": (True, False), "key": (None,)}
"""Values of options that are texts otherwise."""
MAX_ATTEMPTS: Final = 20
"""A call may ask for so many attempts, or for as many as the atask's own definition at the worker says."""
SUBMIT_ONLY: Final = ("delay", "at", "unique")
"""Options of one submitted call, which a decoration does not take."""
ONE_CALL: Final = (*SUBMIT_ONLY, "key")
"""Options of one call, which a decoration does not take."""
_SUBMISSION: Final = ("keep", *SUBMIT_ONLY)
LONGEST_KEEP: Final = 4_000_000.0
"""Seconds: RabbitMQ counts the milliseconds in 32 bits."""
MAX_DELAY: Final = 60 * 24 * 3600.0
"""Seconds that a submitted call may wait before it may begin."""
MAX_PRIORITY: Final = 3
MAX_BATCH: Final = 64
MAX_WINDOW: Final = 65_536
FIRST_WINDOW: Final = 64
WIDEST_WINDOW: Final = 1024


def _unknown(name: str, extra_names: tuple[str, ...]) -> str:
    if name in ("name", "namespace"):
        return f"{name!r} is the identity of an atask and cannot be changed by .options()"
    known = (*_NAMES, *extra_names)
    near = closest(name, known, limit=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    return f"unknown option {name!r}: {hint}"


_RANGES: Final = {"max_attempts": (1, 1_000_000), "priority": (0, MAX_PRIORITY), "window": (1, MAX_WINDOW)}


def _check(name: str, value: Any) -> Any:
    match name:
        case "queue" | "timeout" | "window" | "retry" | "limit" if value is None:
            return None
        case "queue":
            return validate_queue(value)
        case "timeout":
            return validate_timeout(value)
        case "max_attempts" | "priority" | "window":
            validate_integer(name, value, *_RANGES[name])
        case "batch":
            if value is not False and value != "auto":
                validate_integer(name, value, 1, MAX_BATCH)
        case "retry":
            return _check_kind(name, value, Retry, "retry=Retry(on=(OSError,))")
        case "limit":
            return _check_kind(name, value, Limit, 'limit=Limit("stripe", at_once=3)')
        case "resume" | "key":
            return value if value in _UNNAMED[name] else validate_name(value, name)
        case "durable" | "replayable":
            if not isinstance(value, bool):
                raise TypeError(f"{name} is True or False, not {value!r}")
        case _:
            if value not in _CHOICES[name]:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, _CHOICES[name]))}")
    return value


def _check_submission(name: str, value: Any) -> Any:
    match name:
        case _ if value is None:
            return None
        case "keep":
            validate_number(name, value)
            if value != 0 and not 0.001 <= value <= LONGEST_KEEP:
                raise ValueError(
                    f"keep={value!r}: seconds above 0, at most {LONGEST_KEEP:.0f}; 0 for no record, None for as "
                    "long as the transport keeps runs"
                )
            return float(value)
        case "delay":
            validate_number(name, value)
            if not 0 <= value <= MAX_DELAY:
                raise ValueError(f"delay={value!r}: seconds from 0 on, at most {MAX_DELAY:.0f} (60 days)")
            return float(value)
        case "at":
            if not isinstance(value, datetime):
                raise TypeError(f"at is a datetime, not {value!r}")
            if value.utcoffset() is None:
                raise ValueError(f"at={value!r} has no time zone: datetime.now(UTC) has one, say")
            return value
    return validate_name(value, "unique")


def _check_kind(name: str, value: Any, kind: type, example: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {kind.__name__}, as in {example}, or None, not {value!r}")
    return value
