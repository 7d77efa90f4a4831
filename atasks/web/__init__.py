"""The live page of a fleet, as an ASGI application.

    from atasks.web import app

    page = app("amqp://localhost/", token="a secret")   # uvicorn module:page, or mounted in another application

Needs starlette. `atasks web` serves it by itself.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette

from atasks.urls import shown
from atasks.web.fleet import FleetFeed
from atasks.web.server import make_app

__all__ = ["app"]


def app(
    url: str,
    *,
    namespace: str = "default",
    title: str | None = None,
    allow_changes: bool = False,
    token: str | None = None,
    local_only: bool = False,
    **options: Any,
) -> Starlette:
    """The page of the workers that serve `namespace` at `url`; `options` are those of `atasks.connect`.

    Whoever reaches it sees names of atasks, states, tracebacks and hosts, and never arguments or results; so give
    it a `token`, or mount it behind the login of the application. Changes are refused unless `allow_changes`, and
    need the token of the page itself besides. It connects when the first browser looks, and again after a loss.
    `local_only`: refuse requests for other host names than those of this machine.

    Raises ValueError for a token that is empty, or no printable ASCII.
    """
    feed = FleetFeed(url, namespace, **options)
    where = title or f"{shown(url)}, namespace {namespace}"
    return make_app(feed, title=where, allow_changes=allow_changes, token=token, local_only=local_only)
