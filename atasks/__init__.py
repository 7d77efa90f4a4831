"""Await coroutines on other processes and hosts.

@atask
async def add(a: int, b: int) -> int:
    return a + b

async with atasks.connect("amqp://localhost/"):
    print(await add(1, 2))
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from atasks.caller.stream import RemoteStream
    from atasks.caller.sync_stream import SyncStream
    from atasks.caller.sync_watched import SyncWatchedCall
    from atasks.caller.watched import WatchedCall
    from atasks.codecs import CloudpickleCodec, Codec, MsgpackCodec, PickleCodec, ZstdCodec, get_codec
    from atasks.connection import connect, local, serve
    from atasks.current import CurrentCall, carry, current_call
    from atasks.definitions import ATask, StreamTask
    from atasks.errors import (
        AbortPipeline,
        AccessRefused,
        AlreadySubmitted,
        AtasksError,
        CallCancelled,
        CallConnectionLost,
        CallError,
        CallRefused,
        CallTimeout,
        CannotRetry,
        ConnectFailed,
        DecodeError,
        Diverged,
        EncodeError,
        InvalidKeys,
        InvalidName,
        InvalidURL,
        LimitError,
        ListenFailed,
        LoadError,
        NotConnected,
        NotSupported,
        NoWorker,
        PayloadTooLarge,
        PipelineError,
        QueueFull,
        QueueMismatch,
        RecordsUnavailable,
        RegisteringTwice,
        RemoteError,
        RemoteTraceback,
        RetryAfter,
        StreamLost,
        TooManyParked,
        TransportError,
        UnknownRun,
        UnknownTask,
        WorkerLost,
        WorkersFailed,
    )
    from atasks.events import Event, event
    from atasks.known_call import KnownCall, call_of
    from atasks.lazy import LazyConnection, connect_lazily
    from atasks.middleware import Invocation, Middleware, use
    from atasks.policies.limit import Limit
    from atasks.policies.retry import Retry
    from atasks.progress import Progress
    from atasks.resume.steps import once, sleep
    from atasks.router import Router, get_router
    from atasks.scheduling import schedule, schedules, unschedule
    from atasks.submitted.handle import Handle, attach
    from atasks.submitted.schedules import Schedule
    from atasks.sync import connect_sync
    from atasks.tasks import atask
    from atasks.transport.contract import Transport, get_transport
    from atasks.transport.loopback import LoopbackTransport
    from atasks.worker.worker import Worker

__all__ = [
    "ATask",
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
    "CloudpickleCodec",
    "Codec",
    "ConnectFailed",
    "CurrentCall",
    "DecodeError",
    "Diverged",
    "EncodeError",
    "Event",
    "Handle",
    "InvalidKeys",
    "InvalidName",
    "InvalidURL",
    "Invocation",
    "KnownCall",
    "LazyConnection",
    "Limit",
    "LimitError",
    "ListenFailed",
    "LoadError",
    "LoopbackTransport",
    "Middleware",
    "MsgpackCodec",
    "NoWorker",
    "NotConnected",
    "NotSupported",
    "PayloadTooLarge",
    "PickleCodec",
    "PipelineError",
    "Progress",
    "QueueFull",
    "QueueMismatch",
    "RecordsUnavailable",
    "RegisteringTwice",
    "RemoteError",
    "RemoteStream",
    "RemoteTraceback",
    "Retry",
    "RetryAfter",
    "Router",
    "Schedule",
    "StreamLost",
    "StreamTask",
    "SyncStream",
    "SyncWatchedCall",
    "TooManyParked",
    "Transport",
    "TransportError",
    "UnknownRun",
    "UnknownTask",
    "WatchedCall",
    "Worker",
    "WorkerLost",
    "WorkersFailed",
    "ZstdCodec",
    "atask",
    "attach",
    "call_of",
    "carry",
    "connect",
    "connect_lazily",
    "connect_sync",
    "current_call",
    "event",
    "get_codec",
    "get_router",
    "get_transport",
    "local",
    "once",
    "schedule",
    "schedules",
    "serve",
    "sleep",
    "unschedule",
    "use",
]

__version__ = "0.1.0"

_HOMES = {
    "atasks.caller.stream": "RemoteStream",
    "atasks.caller.sync_stream": "SyncStream",
    "atasks.caller.sync_watched": "SyncWatchedCall",
    "atasks.caller.watched": "WatchedCall",
    "atasks.codecs": "CloudpickleCodec Codec MsgpackCodec PickleCodec ZstdCodec get_codec",
    "atasks.connection": "connect local serve",
    "atasks.current": "CurrentCall carry current_call",
    "atasks.definitions": "ATask StreamTask",
    "atasks.errors": (
        "AbortPipeline AccessRefused AlreadySubmitted AtasksError CallCancelled CallConnectionLost "
        "CallError CallRefused CallTimeout CannotRetry ConnectFailed DecodeError Diverged EncodeError "
        "InvalidKeys InvalidName InvalidURL LimitError ListenFailed LoadError NoWorker NotConnected "
        "NotSupported PayloadTooLarge PipelineError QueueFull QueueMismatch RecordsUnavailable "
        "RegisteringTwice RemoteError RemoteTraceback RetryAfter StreamLost TooManyParked TransportError "
        "UnknownRun UnknownTask WorkerLost WorkersFailed"
    ),
    "atasks.events": "Event event",
    "atasks.known_call": "KnownCall call_of",
    "atasks.lazy": "LazyConnection connect_lazily",
    "atasks.middleware": "Invocation Middleware use",
    "atasks.policies.limit": "Limit",
    "atasks.policies.retry": "Retry",
    "atasks.progress": "Progress",
    "atasks.resume.steps": "once sleep",
    "atasks.router": "Router get_router",
    "atasks.scheduling": "schedule schedules unschedule",
    "atasks.submitted.handle": "Handle attach",
    "atasks.submitted.schedules": "Schedule",
    "atasks.sync": "connect_sync",
    "atasks.tasks": "atask",
    "atasks.transport.contract": "Transport get_transport",
    "atasks.transport.loopback": "LoopbackTransport",
    "atasks.worker.worker": "Worker",
}
"""Module -> its public names. It is imported when one of them is used: a program pays for what it uses."""


def _on_demand(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose modules have these public names, as `_HOMES` says it.
    A public name, or a module of the package, is imported when it is used first."""
    home_of = {name: module for module, names in homes.items() for name in names.split()}
    contents = vars(sys.modules[package])

    def find(name: str) -> object:
        if name in home_of:
            value = getattr(import_module(home_of[name]), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        else:
            try:
                value = import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
                raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        contents[name] = value
        return value

    def names() -> list[str]:
        return sorted({*contents, *home_of})

    return find, names


if not TYPE_CHECKING:  # a checker would take any name for one that is here
    __getattr__, __dir__ = _on_demand(__name__, _HOMES)
