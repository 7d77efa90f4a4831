"""Await coroutines on other processes and hosts.

@atask
async def add(a: int, b: int) -> int:
    return a + b

async with atasks.connect("amqp://localhost/"):
    print(await add(1, 2))
"""

from __future__ import annotations

from atasks.caller.stream import RemoteStream
from atasks.caller.sync_stream import SyncStream
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
from atasks.transport.base import LoopbackTransport, Transport, get_transport
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
