"""Names of atasks 0.0.x, for programs that were written against it; each stands for one of today.

They are importable from where they were: `atasks.router` and `atasks.transport.base`. What its constructors took
is honoured where it can be; the rest is a TypeError that names today's way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Final, ParamSpec

from atasks.errors import AtasksError, CallConnectionLost, CallTimeout, NotConnected, UnknownTask

__all__ = [
    "ConnectionLostError",
    "JobNotFound",
    "NoClientTransportRegistered",
    "NoCodecRegistered",
    "RequestTimeoutError",
    "as_before",
    "refuse_overrides",
]

P = ParamSpec("P")

RequestTimeoutError = CallTimeout
ConnectionLostError = CallConnectionLost
JobNotFound = UnknownTask
NoClientTransportRegistered = NotConnected


class NoCodecRegistered(AtasksError):
    """Never raised: a namespace without a codec of its own uses the default one."""


_CAUSE: Final = "leave it out: an exception has the worker's traceback as its __cause__"
_PREFIX: Final = "leave it out: nothing goes over an exchange of that name, and prefix= keeps two programs apart"
_PAST: Final = "leave it out: it was for pickles of Python 2"
_ARGUMENTS: Final[Mapping[str, Mapping[str, tuple[object, str]]]] = {
    "Router": {
        "hostname": (None, "leave it out: a call says which host its worker is on (atasks ps, docs/tracking.md)"),
        "max_trace_depth": (1000, "leave it out: max_parked= of atasks.serve() ends recursion without an end"),
        "trace_filter_modules": (None, _CAUSE),
        "collect_await_frames": (True, _CAUSE),
    },
    "AMQPTransport": {
        "request_exchange": ("atask", _PREFIX),
        "response_exchange": ("atask", _PREFIX),
        "event_exchange": ("atask", _PREFIX),
        "broadcast_exchange": ("atask", _PREFIX),
        "reconnect_interval": (
            5,
            "leave it out: a lost connection is tried again after pauses that grow",
        ),
        "client_properties": (None, "leave it out: the broker shows a connection_name that atasks gives"),
    },
    "PickleCodec": {
        "fix_imports": (True, _PAST),
        "encoding": ("ASCII", _PAST),
        "errors": ("strict", _PAST),
    },
}
"""Class -> the arguments that it takes no more, each with the value that meant what is so today, and advice."""

_CALLED_NO_MORE: Final = ("_call_coro", "_on_request", "_on_event", "_on_broadcast")
"""Methods of a router that programs overrode."""


def as_before(init: Callable[P, None]) -> Callable[P, None]:
    """Have a constructor take the arguments of atasks 0.0.3, where they ask for what is so today. It raises
    TypeError for others, with today's way."""
    cls = init.__qualname__.partition(".")[0]
    known = _ARGUMENTS[cls]

    @functools.wraps(init)
    def construct(*args: P.args, **given: P.kwargs) -> None:
        for name in known.keys() & given:
            default, advice = known[name]
            if given.pop(name) != default:
                raise TypeError(f"{cls}({name}=...) was an argument of atasks 0.0.3: {advice}")
        init(*args, **given)

    return construct


def refuse_overrides(cls: type) -> None:
    """Raise TypeError for a class of routers with a method that atasks 0.0.3 called and nothing calls today."""
    for name in _CALLED_NO_MORE:
        if name in vars(cls):
            raise TypeError(
                f"nothing calls {cls.__qualname__}.{name}(): give what it did around runs to the run() of a "
                "middleware, and that to atasks.use(), see docs/middleware.md"
            )
