"""The page as an ASGI application: `atasks.web.app(url)`, or `atasks web` on the command line."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from atasks.errors import AtasksError
from atasks.web.feed import ACTIONS, Feed
from atasks.web.picture import Picture

__all__ = ["is_token", "make_app"]

PERIOD: Final = 0.5
"""Seconds between two messages to a browser."""
LINGER: Final = 20.0
"""Seconds for which the fleet is watched after the last browser has gone, so that a reload keeps the past."""
BODY_BYTES: Final = 256 * 2**10
VIEWERS: Final = 100
"""Browsers that may look at a time: each costs a picture every `PERIOD`, whether it reads that or not."""
COOKIE: Final = "atasks-token"
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
STATIC: Final = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
LOCAL: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})


def make_app(
    feed: Feed,
    *,
    title: str,
    allow_changes: bool = False,
    token: str | None = None,
    local_only: bool = False,
) -> Starlette:
    """The page over a feed. `title` names the broker and namespace. Without `allow_changes` every request to
    change something is refused. With `token`, a browser must bring it once (`/?token=...`), and a program with
    each request (`Authorization: Bearer ...`). `local_only` refuses requests for other host names than this
    machine's own, so that a page of another site cannot reach it by a name that resolves to this machine.

    Raises ValueError for a token that is empty, or that no header can carry.
    """
    if token is not None and not is_token(token):
        raise ValueError("a token is printable ASCII, and not empty: an empty one would let everybody look")
    page = _Page(feed, title, allow_changes, token, local_only)
    routes = [
        Route("/", page.index),
        Route("/static/{name}", page.static),
        Route("/api/picture", page.picture_once),
        Route("/api/stream", page.stream),
        Route("/api/stack/{id}", page.stack),
        Route("/api/run/{id}", page.submitted),
        Route("/api/act", page.act, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=page.lifespan)


def is_token(text: str) -> bool:
    """Return True if a header can carry it, and nobody brings it by chance."""
    return bool(text) and text.isascii() and text.isprintable()


class _Page:
    """The requests of browsers, and the watch that they share."""

    def __init__(self, feed: Feed, title: str, allow_changes: bool, token: str | None, local_only: bool) -> None:
        self._feed = feed
        self._title = title
        self._allow_changes = allow_changes
        self._token = token
        self._local_only = local_only
        self._csrf = secrets.token_urlsafe(24)
        self._picture = Picture()
        self._viewers = 0
        self._watching: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._closing.set()
            await self._stop()

    # -- who may look

    def _check(self, request: Request) -> None:
        if self._local_only and request.headers.get("host", "").rsplit(":", 1)[0] not in LOCAL:
            raise HTTPException(403, "ask for 127.0.0.1 or localhost, or start the page with --token")
        if self._token is None:
            return
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        offered = bearer if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")
        if not _same(offered, self._token):
            raise HTTPException(401, "open the page with ?token=... once, or send Authorization: Bearer ...")

    async def index(self, request: Request) -> Response:
        offered = request.query_params.get("token")
        if self._token is not None and offered is not None and _same(offered, self._token):
            response: Response = RedirectResponse(request.url.path, status_code=303, headers=HEADERS)
            response.set_cookie(
                COOKIE, offered, httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
            return response
        self._check(request)
        values = {"title": self._title, "csrf": self._csrf, "changes": str(self._allow_changes).lower()}
        text = _read("index.html")
        for name, value in values.items():
            text = text.replace("{{" + name + "}}", _escape(value))
        return HTMLResponse(text, headers=HEADERS)

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404)
        return Response(_read(name), media_type=STATIC[name], headers=HEADERS)

    # -- what they see

    async def picture_once(self, request: Request) -> Response:
        self._check(request)
        with self._viewer():
            return JSONResponse(self._picture.snapshot(), headers=HEADERS)

    async def stream(self, request: Request) -> Response:
        self._check(request)
        if self._viewers >= VIEWERS:
            raise HTTPException(503, f"{VIEWERS} browsers look already: close one")
        return _Stream(self._viewer, self._updates())

    async def _updates(self) -> AsyncIterator[str]:
        version = -1
        while not self._closing.is_set():
            update = self._picture.changes(version) if version >= 0 else self._picture.snapshot()
            version = update["version"]
            yield f"data: {json.dumps(update, separators=(',', ':'), default=str)}\n\n"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD):
                    await self._closing.wait()

    @contextlib.contextmanager
    def _viewer(self) -> Iterator[None]:
        """Have the fleet watched while the block runs, and a while after the last one."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self._viewers += 1
        if self._watching is None or self._watching.done():
            self._picture = Picture()
            self._watching = asyncio.create_task(self._feed.run(self._picture), name="atasks page")
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers and not self._closing.is_set():
                self._ending = asyncio.get_running_loop().call_later(LINGER, self._end)

    def _end(self) -> None:
        self._ending = None
        if self._watching is not None:
            self._watching.cancel()

    async def _stop(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def stack(self, request: Request) -> Response:
        self._check(request)
        return await _answer(self._feed.stack, request.path_params["id"])

    async def submitted(self, request: Request) -> Response:
        self._check(request)
        return await _answer(self._feed.submitted, request.path_params["id"])

    # -- what they do

    async def act(self, request: Request) -> Response:
        self._check(request)
        if not self._allow_changes:
            raise HTTPException(403, "this page only shows: start it with --allow-changes")
        if not _same(request.headers.get("x-csrf-token", ""), self._csrf):
            raise HTTPException(403, "reload the page: its token is of an earlier start")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                raise HTTPException(413)
        try:
            asked = json.loads(body)
            action, ids = asked["action"], asked["ids"]
            if action not in ACTIONS or not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise HTTPException(400, f"send an action ({', '.join(ACTIONS)}) and a list of ids") from None

        async def act() -> dict[str, str]:
            return {"done": await self._feed.act(action, ids)}

        return await _answer(act)


class _Stream(StreamingResponse):
    """Updates for one browser, which is a viewer from the turn of its request on until it has gone."""

    def __init__(self, viewer: Callable[[], AbstractContextManager[None]], updates: AsyncIterator[str]) -> None:
        super().__init__(updates, media_type="text/event-stream", headers=HEADERS)
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._viewer():
            await super().__call__(scope, receive, send)


async def _answer(function: Callable[..., Awaitable[object]], *args: object) -> Response:
    try:
        return JSONResponse(await function(*args), headers=HEADERS)
    except AtasksError as error:
        return JSONResponse({"error": _line(error)}, status_code=409, headers=HEADERS)


def _line(error: AtasksError) -> str:
    return " ".join(str(error).split()).encode("utf-8", "replace").decode()  # it may name what was asked for


def _read(name: str) -> str:
    return (resources.files("atasks.web") / "static" / name).read_text(encoding="utf-8")


def _same(offered: str, expected: str) -> bool:
    return hmac.compare_digest(offered.encode(), expected.encode())


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
