"""The path in a URL at which a hub listens."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from atasks.errors import InvalidURL
from atasks.urls import option, shown, take_apart

__all__ = ["checked_path", "parse"]

MAX_PATH: Final = 107 if sys.platform == "linux" else 103
"""Bytes in the path of a Unix socket."""
URL_OPTIONS: Final[dict[str, Callable[[str], Any]]] = {
    "queue": str,
    "workers": int,
    "keep_runs": float,
    "keep_bytes": int,
}


def parse(url: str | Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The path of the socket, None for a private one (`local:`), and the options of the query. Or InvalidURL."""
    if not isinstance(url, str):
        if len(url) != 1:
            raise InvalidURL("several URLs are for nodes of one broker, and a hub is one process: give one URL")
        (url,) = url
    parts = take_apart(url)
    if parts.netloc:
        path = "/run/app.sock" if "@" in parts.netloc or ":" in parts.netloc else f"/{parts.netloc}{parts.path}"
        raise InvalidURL(
            f"{shown(url)!r} names a host: a URL of a socket has three slashes: {parts.scheme}://{path}"
        )
    path, whole = unquote(parts.path), unquote(url.partition(":")[2])
    # A path may have both signs in the name of a file; in the place of its first folder they are a mistake. The
    # password may have a question mark.
    if re.match("/+[^/@]*:[^/@]*@|(?!/)[^@]*:[^@]*@", whole):
        right = "unix:///run/app.sock" if parts.scheme == "unix" else "local:"
        said = shown(f"{parts.scheme}:{whole}")
        raise InvalidURL(f"{said!r} names a user and a password: a socket asks for neither, as in {right}")
    options: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in URL_OPTIONS:
            raise InvalidURL(f"unknown option {name!r} in the URL: known are {', '.join(URL_OPTIONS)}")
        options[name] = option(name, text, URL_OPTIONS[name])
    if parts.scheme == "local":
        if path:
            raise InvalidURL(f"local: is a private socket, without a path: did you mean unix://{path}?")
        return None, options
    if not path.strip("/"):
        raise InvalidURL("a URL of a socket needs its path: unix:///run/app.sock")
    return path, options


def checked_path(path: str) -> str:
    """The absolute path, if a socket can have it. Raises InvalidURL."""
    path = os.path.abspath(path)
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise InvalidURL(f"the path of a socket cannot contain surrogates: {path!r}") from None
    if size > MAX_PATH:
        raise InvalidURL(
            f"the path of a socket has at most {MAX_PATH} bytes on this system, and this one has {size}: {path}"
        )
    if "\0" in path:
        raise InvalidURL("the path of a socket cannot contain a zero byte")
    return path
