"""The errors of the client library, and those of atasks which they become."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from typing import Final

from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from yarl import URL

from atasks.errors import AccessRefused, ConnectFailed, QueueMismatch, TransportError
from atasks.transport.backends.amqp import tls

__all__ = ["CLIENT_ERRORS", "NoAnswer", "NoChannel", "differing", "is_down", "map_error", "server_name"]

CLIENT_ERRORS: Final = (
    AMQPError,
    ChannelInvalidStateError,
    OSError,
    RuntimeError,
    ValueError,
    asyncio.TimeoutError,
)
"""Errors that the client library raises when a connection or a channel fails. A `CancelledError` while nobody
cancelled the running task belongs to them: see `guard` in questions.py."""


class NoAnswer(ConnectionError, TimeoutError):
    """The broker has left a question without an answer for long."""


class NoChannel(ConnectionError):
    """A connection has as many channels as the broker lets it have."""


def is_down(error: BaseException) -> bool:
    """Return True if the node of the cluster that has a queue is down, by what became of a question about that
    queue: RabbitMQ 3 says so, and RabbitMQ 4 does not answer."""
    says = isinstance(error, ChannelNotFoundEntity) and "is down or inaccessible" in str(error)
    return says or isinstance(error, NoAnswer)


def differing(error: BaseException) -> tuple[str, str] | None:
    """Return an argument that a queue has otherwise than it was declared, and its value there, as the broker says
    them (`none`: it has none). None: that is not the error."""
    found = re.search(_DIFFERS, str(error))
    return None if found is None else (found[1], found[2])


_DIFFERS: Final = r"inequivalent arg '([\w-]+)' for queue .* but current is (?:the value )?'?(\w+)'?"
_NOBODY_LISTENS: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)


def server_name(url: str) -> str:
    """host:port of a URL, without credentials."""
    address = URL(url)
    return f"{address.host or 'localhost'}:{address.port or (5671 if address.scheme == 'amqps' else 5672)}"


def map_error(error: BaseException, url: str) -> TransportError:
    """The atasks error for what the client library raised while connecting or declaring."""
    where = f"RabbitMQ at {server_name(url)}"
    user, vhost = URL(url).user or "guest", URL(url).path.removeprefix("/") or "/"
    text = str(error)
    mapped: TransportError
    if isinstance(error, ChannelPreconditionFailed) and text.endswith("is reached"):  # a limit of queues
        mapped = AccessRefused(
            f"{where} refuses user {user!r}: {text.removeprefix('PRECONDITION_FAILED - ')}. Have the limit raised "
            "(rabbitmqctl list_vhost_limits), or delete what is not needed"
        )
    elif isinstance(error, ChannelPreconditionFailed):
        exchange = "for exchange" in text  # that of control messages: others have declared it in their own way
        advice = (
            "Delete the exchange, or give another prefix"
            if exchange
            else "Start this worker with the same queue_type and max_priority, or delete the queue first"
        )
        mapped = QueueMismatch(f"{where}: {text.removeprefix('PRECONDITION_FAILED - ')}. {advice}")
    elif isinstance(error, ConnectionNotAllowed) or "NOT_ALLOWED" in text or "['Connection.OpenOk'], got" in text:
        # the last one is how aiormq says that the broker closed the connection when the virtual host was opened:
        # the broker's reason is lost by that
        mapped = AccessRefused(
            f"{where} has no virtual host {vhost!r} for user {user!r}: check the path of the URL "
            "(amqp://user:password@host/vhost) and the user's permissions. Or no further connection is "
            "allowed: see the limits of both (rabbitmqctl list_vhost_limits, list_user_limits)"
        )
    elif isinstance(error, (ProbableAuthenticationError, AuthenticationError)) or "ACCESS_REFUSED" in text:
        if isinstance(error, ChannelAccessRefused):
            detail = text.removeprefix("ACCESS_REFUSED - ")
            mapped = AccessRefused(
                f"{where} refuses user {user!r}: {detail}. Give the user permissions on {vhost!r}"
            )
        else:
            mapped = AccessRefused(f"{where} refuses user {user!r}: check the user and the password in the URL")
    elif isinstance(error, NoAnswer):
        mapped = ConnectFailed(f"{where}: {text}. Look into its log: it may be starting, or a queue has no leader")
    elif isinstance(error, NoChannel):
        mapped = ConnectFailed(f"{where}: {text}. Raise channel_max in its configuration")
    else:
        reason = "no answer in time" if isinstance(error, TimeoutError) else _reason(error)
        mapped = ConnectFailed(f"cannot reach {where} ({reason}): {_advice(error, url)}")
    mapped.__cause__ = error
    return mapped


def _advice(error: BaseException, url: str) -> str:
    """The advice where to look, by how far the connection came."""
    system = next((e for e in (error.__cause__, error) if isinstance(e, OSError)), None)
    if isinstance(system, ssl.SSLError):
        return tls.advice(system, URL(url).host or "localhost")
    if isinstance(system, socket.gaierror):
        return "check the name of the host in the URL"
    if isinstance(error, TimeoutError):
        return "start it (docker compose up -d), or check host and port: RabbitMQ has 5672, and 5671 with TLS"
    if system is not None and system.errno in _NOBODY_LISTENS:
        return "start it (docker compose up -d), or give the URL of another one"
    if URL(url).scheme == "amqps":  # with TLS 1.3 a broker that refuses a client's certificate just hangs up
        return (
            "the broker may want another certificate of the client (?certfile=client.pem&keyfile=client.key), or "
            "something else listens there: RabbitMQ has 5671 with TLS"
        )
    return (
        "something listens there and does not answer as RabbitMQ does: check the port "
        "(5672; 5671 with TLS; 15672 is the management page), or wait until it has started"
    )


def _reason(error: BaseException) -> str:
    """An OSError's own words, found behind the client library's wrapping."""
    for reason in (error.__cause__, error):
        if isinstance(reason, OSError) and reason.strerror:
            if reason.errno and reason.strerror.startswith("Connect call failed"):
                return os.strerror(reason.errno)  # the system says it better than asyncio: "Connection refused"
            return reason.strerror
    return str(error).split("\n", 1)[0] or type(error).__name__
