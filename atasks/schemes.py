"""Which transport a URL names, and which options it takes."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from atasks.commands import worker_command
from atasks.errors import InvalidURL, closest
from atasks.namespaces import namespaces
from atasks.options import AMQPOptions, ConnectOptions, PrivateOptions, WorkerOptions
from atasks.transport.contract import Transport, get_transport
from atasks.urls import shown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["TRANSPORTS", "Where", "check_options", "is_added", "transport_class", "transport_of"]

logger = logging.getLogger("atasks")

TRANSPORTS: Final = {
    "loopback": "atasks.transport.loopback:LoopbackTransport",
    "amqp": "atasks.transport.backends.amqp:AMQPTransport",
    "amqps": "atasks.transport.backends.amqp:AMQPTransport",
    "unix": "atasks.transport.backends.local:LocalTransport",
    "local": "atasks.transport.backends.local:LocalTransport",
}
"""URL scheme -> the transport's class."""
ENTRY_POINTS: Final = "atasks.transports"
"""The group of entry points by which packages add schemes: `mine = "package.module:Class"`."""
Where = str | Sequence[str] | Transport
"""A URL, those of the nodes of one broker, or a transport that is made already."""
_SERVE_OPTIONS: Final = ("queues", "lifespan")


def _added(scheme: str) -> EntryPoint | None:
    """The entry point by which an installed package adds this scheme. Raises InvalidURL if several do."""
    from importlib.metadata import entry_points  # which other programs need not wait for

    found = {each.value: each for each in entry_points(group=ENTRY_POINTS, name=scheme)}
    if len(found) > 1:
        raise InvalidURL(
            f"several packages add the scheme {scheme}: ({', '.join(sorted(found))}): keep one of them"
        )
    return next(iter(found.values()), None)


def is_added(scheme: str) -> bool:
    """Return True if an installed package adds this scheme. Raises InvalidURL if several do."""
    return _added(scheme) is not None


def transport_class(scheme: str) -> type[Transport]:
    """The class of a scheme's transport. Raises InvalidURL where a package adds something else under it."""
    if scheme in TRANSPORTS:
        module, _, name = TRANSPORTS[scheme].partition(":")
        cls: type[Transport] = getattr(importlib.import_module(module), name)
        return cls
    added = _added(scheme)
    assert added is not None, "`_scheme` has found it"
    try:
        loaded = added.load()
    except (ImportError, AttributeError) as error:
        raise InvalidURL(f"the transport of {scheme}: URLs, {added.value}, cannot be imported: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Transport)):
        raise InvalidURL(f"the scheme {scheme}: leads to {added.value}, which is no subclass of atasks.Transport")
    return loaded


def _scheme(url: str | Sequence[str]) -> str:
    if isinstance(url, (list, tuple)):
        schemes = [_scheme(item) for item in url]
        if len({TRANSPORTS.get(scheme, scheme) for scheme in schemes}) != 1:
            raise InvalidURL(f"several URLs are nodes of one broker, not {schemes}: give one scheme for all")
        return schemes[0]
    if not isinstance(url, str):
        instance = "" if not isinstance(url, type) else f": make one, as in {url.__name__}()"
        raise TypeError(f"a URL is a string, not {type(url).__name__}{instance}")
    scheme = url.partition(":")[0].lower()
    if ":" in url and (scheme in TRANSPORTS or _added(scheme) is not None):
        return scheme
    near = closest(scheme, TRANSPORTS, limit=1)
    hint = (
        f"did you mean {near[0]}:?" if near else f"known schemes: {', '.join(f'{name}:' for name in TRANSPORTS)}"
    )
    raise InvalidURL(f"{shown(url)!r} names no transport; {hint}")


OPTIONS: Final = {
    "loopback": frozenset({"keep_runs", "keep_bytes"}),
    "amqp": frozenset(AMQPOptions.__annotations__),
    "amqps": frozenset(AMQPOptions.__annotations__),
    "unix": frozenset({*PrivateOptions.__annotations__, "workers"}),
    "local": frozenset({*PrivateOptions.__annotations__, "workers"}),
}
"""URL scheme -> the options that its transport takes."""
NOT_AMQP: Final = frozenset({"hub", "workers", "modules", *WorkerOptions.__annotations__})
"""Options that ask for worker processes. A connection to a broker has none: ignoring them would mislead."""
_ignored: set[tuple[str, str]] = set()
"""Scheme and option of what was logged."""


def _is_meant(name: str, scheme: str) -> bool:
    """Tell whether the transport takes this option; False: it has no meaning there, which is logged once.

    Raises TypeError for an option that no transport takes, and for one that this transport cannot honour.
    """
    if scheme not in OPTIONS:  # that of a package: its transport knows
        return name not in WorkerOptions.__annotations__
    if name in OPTIONS[scheme]:
        return True
    known = [*_SERVE_OPTIONS, *ConnectOptions.__annotations__]
    if name not in known:
        near = closest(name, known, limit=1)
        hint = f"did you mean {near[0]}?" if near else f"{scheme}: takes {', '.join(sorted(OPTIONS[scheme]))}"
        raise TypeError(f"unknown option {name!r}; {hint}")
    if scheme.startswith("amqp") and name in NOT_AMQP:
        raise TypeError(
            f"{name}= is for worker processes of this program (local:), and over {scheme}: workers are programs "
            f"of their own: leave it out, and start them with {worker_command()}"
        )
    if name in _SERVE_OPTIONS:
        raise TypeError(f"{name}= is for atasks.serve(), and this is a connection without a worker: leave it out")
    if scheme == "loopback" and name in WorkerOptions.__annotations__:
        return False  # its worker takes it
    if (scheme, name) not in _ignored:
        _ignored.add((scheme, name))
        logger.debug("the transport of %s: URLs ignores the option %s: it has no meaning there", scheme, name)
    return False


def check_options(url: str | Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise what `connect` would raise for this URL and these options before it connects."""
    transport_of(url, "default", given)


def transport_of(url: Where, namespace: str, given: Mapping[str, Any]) -> Transport:
    """The transport for a URL, or the one that a program gives, without being registered in the namespace.
    Raises InvalidURL, TypeError and ValueError."""
    if isinstance(url, Transport):
        return _given(url, namespace, given)
    scheme = _scheme(url)
    options = {name: value for name, value in given.items() if _is_meant(name, scheme)}
    cls = transport_class(scheme)
    registered = get_transport(namespace)
    try:
        return cls.from_url(url, namespace, options)
    finally:
        namespaces.register(namespace, transport=registered)


def _given(transport: Transport, namespace: str, given: Mapping[str, Any]) -> Transport:
    """The transport of a program, from now on that of a block alone. Raises TypeError and ValueError."""
    name = type(transport).__name__
    if wrong := [option for option in given if option not in WorkerOptions.__annotations__]:
        raise TypeError(f"{wrong[0]}= is for the transport: give it to {name}(), which is made already")
    if transport.namespace != namespace:
        raise ValueError(
            f"this {name} is of the namespace {transport.namespace!r}: say namespace={transport.namespace!r}"
        )
    if get_transport(namespace) is transport:  # constructing it has registered it for awaits anywhere
        namespaces.register(namespace, transport=None)
    return transport
