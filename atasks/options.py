"""The options of an atask: what they are, what values they take, and their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, TypedDict

from atasks.checks import (
    MAX_TIMEOUT,
    validate_count,
    validate_integer,
    validate_name,
    validate_number,
    validate_queue,
    validate_seconds,
)
from atasks.errors import closest
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
    "WorkerOptions",
    "validate_count",
    "validate_name",
    "validate_queue",
    "validate_seconds",
]


class CallOptions(TypedDict, total=False):
    """What `.options(...)` takes."""

    queue: str | None
    timeout: float | None
    delivery: Literal["at_least_once", "at_most_once"]
    max_attempts: int
    on_no_worker: Literal["wait", "error"]
    orphan: Literal["cancel", "run"]
    priority: int
    batch: Literal["auto", False] | int
    durable: bool
    window: int
    replayable: bool
    retry: Retry | None


Executor = Literal["thread", "process"]
"""Where a blocking function runs at its worker."""
EXECUTORS: Final[tuple[Executor, ...]] = ("thread", "process")


class DecorationOptions(CallOptions, total=False):
    """What `@atask(...)` takes besides `name` and `namespace`."""

    executor: Executor | None


class AMQPOptions(TypedDict, total=False):
    """What `connect` and `serve` take for RabbitMQ: the arguments of `AMQPTransport`."""

    prefix: str
    queue: str
    queue_type: Literal["classic", "quorum"]
    max_priority: int | None
    timeout: float
    consumer_timeout: float
    keep_runs: float
    keys: str | os.PathLike[str] | None
    unsealed: Literal["refuse", "accept"]


class LocalOptions(TypedDict, total=False):
    """What `connect` and `serve` take for worker processes of one host: the arguments of `LocalTransport`."""

    hub: bool | None
    queue: str
    modules: Sequence[str] | None
    timeout: float
    keep_runs: float
    keep_bytes: int


class WorkerOptions(TypedDict, total=False):
    """How the worker processes of a program serve: see `atasks.serve`."""

    concurrency: int
    max_parked: int
    grace: float
    threads: int | None
    processes: int | None


class PrivateOptions(LocalOptions, WorkerOptions, total=False):
    """What `local` takes besides its own arguments."""


class TransportOptions(AMQPOptions, LocalOptions, total=False):
    """What `serve` takes besides its own arguments."""

    workers: int | None


class ConnectOptions(TransportOptions, WorkerOptions, total=False):
    """What `connect` takes besides the URL and the namespace."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of one atask, or of a re-optioned view of it; every value is valid."""

    queue: str | None = None
    """The work queue; None: the transport's default."""
    timeout: float | None = None
    """Seconds for the whole call; None: no deadline of its own."""
    delivery: Literal["at_least_once", "at_most_once"] = "at_least_once"
    max_attempts: int = 3
    """How many workers may die with the call before it ends in `WorkerLost`."""
    on_no_worker: Literal["wait", "error"] = "wait"
    orphan: Literal["cancel", "run"] = "cancel"
    """What happens to a run whose caller is gone."""
    priority: int = 0
    """0..3, on queues that workers declare with `max_priority`."""
    batch: Literal["auto", False] | int = "auto"
    """Whether calls may share a message: "auto" (calls of short atasks that are made together), False, or a number
    (up to so many do, whatever they cost)."""
    durable: bool = True
    """Whether the request survives a restart of the broker."""
    executor: Executor | None = None
    """Where a blocking function runs at the worker: None, on its event loop."""
    window: int = 64
    """Streams: items that the worker may run ahead of the consumer."""
    replayable: bool = False
    """Streams: whether another worker may begin anew when the first one dies, because it yields the same items."""
    retry: Retry | None = None
    """Which endings are worth another try, and when; None: none is."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options that a Router subclass declares."""

    def with_changes(self, changes: Mapping[str, Any], extra_names: tuple[str, ...] = ()) -> TaskOptions:
        """These options with changes: TypeError for an unknown name, ValueError or TypeError for a bad value."""
        known: dict[str, Any] = {}
        extra = dict(self.extra)
        for name, value in changes.items():
            if name in extra_names:
                extra[name] = value
            elif name in _NAMES:
                known[name] = _check(name, value)
            else:
                raise TypeError(_unknown(name, extra_names))
        return replace(self, **known, extra=extra)


_NAMES: Final = tuple(item.name for item in fields(TaskOptions) if item.name != "extra")
_CHOICES: Final = {
    "delivery": ("at_least_once", "at_most_once"),
    "on_no_worker": ("wait", "error"),
    "orphan": ("cancel", "run"),
    "executor": (None, *EXECUTORS),
}
MAX_ATTEMPTS: Final = 20
"""A call may ask for so many attempts, or for as many as the atask's own definition at the worker says."""
MAX_PRIORITY: Final = 3
MAX_BATCH: Final = 64
MAX_WINDOW: Final = 65_536


def _unknown(name: str, extra_names: tuple[str, ...]) -> str:
    if name in ("name", "namespace"):
        return f"{name!r} is the identity of an atask and cannot be changed by .options()"
    known = (*_NAMES, *extra_names)
    near = closest(name, known, limit=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    return f"unknown option {name!r}: {hint}"


def _check(name: str, value: Any) -> Any:
    match name:
        case "queue":
            return None if value is None else validate_queue(value)
        case "timeout":
            return None if value is None else _check_timeout(value)
        case "max_attempts":
            validate_integer(name, value, 1, 1_000_000)
        case "priority":
            validate_integer(name, value, 0, MAX_PRIORITY)
        case "batch":
            if value is not False and value != "auto":
                validate_integer(name, value, 1, MAX_BATCH)
        case "window":
            validate_integer(name, value, 1, MAX_WINDOW)
        case "retry":
            return _check_kind(name, value, Retry, "retry=Retry(on=(OSError,))")
        case "durable" | "replayable":
            if not isinstance(value, bool):
                raise TypeError(f"{name} is True or False, not {value!r}")
        case _:
            if value not in _CHOICES[name]:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, _CHOICES[name]))}")
    return value


def _check_timeout(value: Any) -> float:
    validate_number("timeout", value)
    if not value > 0:
        raise ValueError(f"timeout={value!r}: seconds above 0, or None for no deadline")
    if value > MAX_TIMEOUT:
        raise ValueError(f"timeout is at most {MAX_TIMEOUT} seconds (10 years), or None for no deadline")
    return float(value)


def _check_kind(name: str, value: Any, kind: type, example: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is a {kind.__name__}, as in {example}, or None, not {value!r}")
    return value
