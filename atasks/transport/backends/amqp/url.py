"""The URL of a broker, taken apart: its address, and options of the transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from yarl import URL

from atasks.errors import InvalidURL
from atasks.transport.backends.amqp import tls
from atasks.urls import option, take_apart

__all__ = ["checked", "split", "user_of"]

OPTIONS: Final[dict[str, Callable[[str], Any]]] = {
    "prefix": str,
    "queue": str,
    "queue_type": str,
    "max_priority": int,
    "consumer_timeout": float,
    "keep_runs": float,
}


def checked(url: str) -> str:
    """The URL, if it is one of a broker. Raises TypeError, InvalidURL."""
    take_apart(url)
    try:
        address = URL(url)
        valid = address.scheme in ("amqp", "amqps") and bool(address.host)
        (address.host or "").encode("idna")  # as the name lookup does first
    except ValueError:  # its text may quote a secret; a UnicodeError is a ValueError too
        valid = False
    if not valid:
        raise InvalidURL("an AMQP URL reads amqp://user:password@host:port/vhost (amqps:// for TLS)")
    return url


def split(urls: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The URLs without the options of the transport in their queries, and these options. What else is in a query
    stays there, for the client library. Raises TypeError, InvalidURL."""
    addresses = [tls.with_options(URL(checked(item))) for item in urls]
    found: dict[str, Any] = {}
    for name, kind in OPTIONS.items():
        texts = {address.query[name] for address in addresses if name in address.query}
        if len(texts) > 1:
            raise InvalidURL(f"the URLs say different things of {name}: {sorted(texts)}")
        for text in texts:
            found[name] = option(name, text, kind)
    return [str(address.without_query_params(*found)) for address in addresses], found


def user_of(url: str) -> str:
    """The user of the broker that a URL names."""
    return URL(url).user or "guest"
