"""URLs of transports: taken apart, and shown without what is secret in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from atasks.errors import InvalidURL

__all__ = ["DATABASE_URL", "option", "shown", "take_apart"]

MAX_SHOWN: Final = 100
"""Characters of a URL or of a value that an error quotes."""
BROKER_URL: Final = "amqp://user:password@host:5672/vhost"
DATABASE_URL: Final = "postgresql://user:password@host:5432/database"


def take_apart(url: object, example: str = BROKER_URL) -> SplitResult:
    """The parts of a URL. Raises TypeError for what is no string, InvalidURL for what is no URL.

    Neither error repeats a password; InvalidURL shows the example.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a string, not {type(url).__name__}")
    if "#" in url:  # what is behind it would be left out, and it may stand in a password
        raise InvalidURL(f"{shown(url)!r} is no URL of a transport: write # as %23")
    try:
        url.encode()
        parts = urlsplit(url)
        _ = parts.port  # the property raises for a port that is no number
    except ValueError:  # its words may quote what stands where the host should, which may be a password
        raise InvalidURL(f"{shown(url)!r} is no URL: give one like {example}") from None
    return parts


def shown(url: str) -> str:
    """The URL without user, password and query, shortened: this much may stand in an error or in a log."""
    address = re.split("[?#]", url, maxsplit=1)[0]
    scheme, colon, rest = address.partition("://")
    if not (colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme)):
        scheme, colon, rest = "", "", address
    _, at, host = rest.rpartition("@")
    if "@" in url[len(address) :]:
        rest = "…"  # the sign at which it was cut stands in a password
    elif at:
        rest = f"…@{host}"
    elif colon and not rest.startswith("/") and not _is_host(rest.partition("/")[0]):
        rest = "…"  # a user and a password whose host is missing
    elif (
        not colon
        and ":" in rest
        and not _is_host(rest.partition("/")[0])
        and not re.fullmatch("(unix|local):[^:]*", rest)
    ):
        rest = f"{rest.partition(':')[0]}:…"  # a user and a password alone, or behind a scheme without slashes
    text = f"{scheme}{colon}{rest}"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _is_host(netloc: str) -> bool:
    """Check for host or host:port; anything else might be user:password."""
    return re.fullmatch(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]*)(:\d{0,5})?", netloc) is not None


def option(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    """The value of an option in the query of a URL. Raises InvalidURL where `kind` refuses the text."""
    try:
        return kind(text)
    except ValueError:
        value = text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
        raise InvalidURL(f"{name}={value!r} in the URL is not a number") from None
