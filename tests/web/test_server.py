"""The page's server: who may look, who may change something, and when the fleet is watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Self

import httpx
import pytest

from atasks.errors import UnknownRun
from atasks.testing import until
from atasks.web import server as page
from atasks.web.picture import Picture
from atasks.web.server import make_app


class Fleet:
    """A feed without a fleet, which notes what it is asked."""

    def __init__(self) -> None:
        self.watching = 0
        self.watches = 0
        self.acts: list[tuple[str, list[str]]] = []

    async def run(self, picture: Picture) -> None:
        self.watching += 1
        self.watches += 1
        try:
            picture.connected = True
            picture.take({"kind": "started", "id": "c1", "task": "<b>pay</b>", "worker": "ann"})
            await asyncio.Event().wait()
        finally:
            self.watching -= 1

    async def act(self, action: str, ids: Sequence[str]) -> str:
        if ids == ["unknown"]:
            raise UnknownRun("no run unknown:\nnothing was done")
        self.acts.append((action, list(ids)))
        return f"{action}: done"

    async def stack(self, call_id: str) -> dict[str, Any]:
        return {"stack": f"frames of {call_id}"}

    async def submitted(self, run_id: str) -> dict[str, Any]:
        if run_id == "unknown":
            raise UnknownRun("no run unknown:\nnothing was found")
        return {"id": run_id}


@pytest.fixture
async def fleet() -> Fleet:
    return Fleet()


class Browser(httpx.AsyncClient):
    def __init__(self, fleet: Fleet, **options: Any) -> None:
        self.app = make_app(fleet, title='amqp://<x>"', **options)
        super().__init__(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1:8000")

    async def __aenter__(self) -> Self:
        self.lifespan = self.app.router.lifespan_context(self.app)
        await self.lifespan.__aenter__()
        await super().__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(None, None, None)
        await self.lifespan.__aexit__(None, None, None)

    async def csrf(self) -> str:
        return (await self.get("/")).text.partition('name="csrf" content="')[2].partition('"')[0]


@pytest.fixture
async def shown(fleet: Fleet) -> AsyncIterator[Browser]:
    async with Browser(fleet) as browser:
        yield browser


async def test_the_page_and_what_it_loads(shown: Browser) -> None:
    whole = await shown.get("/")
    assert whole.status_code == 200
    assert "amqp://&lt;x&gt;&quot;" in whole.text
    assert "{{" not in whole.text
    assert "default-src 'self'" in whole.headers["content-security-policy"]
    for name in ("page.js", "page.css", "icon.svg"):
        assert (await shown.get(f"/static/{name}")).status_code == 200
    for name in ("index.html", "..%2fapp.py", "other.js"):
        assert (await shown.get(f"/static/{name}")).status_code == 404


async def test_the_fleet_is_watched_while_somebody_looks(
    shown: Browser, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LINGER", 0.0)
    assert fleet.watches == 0
    await shown.get("/api/picture")
    await until(lambda: fleet.watches == 1 and fleet.watching == 0)
    monkeypatch.setattr(page, "LINGER", 60.0)
    await shown.get("/api/picture")
    await until(lambda: fleet.watching == 1)
    assert (await shown.get("/api/picture")).json()["calls"][0]["task"] == "<b>pay</b>"
    assert fleet.watches == 2


async def test_a_page_that_only_shows_changes_nothing(shown: Browser, fleet: Fleet) -> None:
    told = await shown.post(
        "/api/act", json={"action": "cancel", "ids": ["c1"]}, headers={"X-CSRF-Token": await shown.csrf()}
    )
    assert (told.status_code, told.text) == (403, "this page only shows: start it with --allow-changes")
    assert fleet.acts == []


async def test_changes_need_the_token_of_the_page(fleet: Fleet) -> None:
    async with Browser(fleet, allow_changes=True) as browser:
        body = {"action": "cancel", "ids": ["c1"]}
        assert (await browser.post("/api/act", json=body)).status_code == 403
        odd = {"X-CSRF-Token": b"\xff\xfe"}
        assert (await browser.post("/api/act", json=body, headers=odd)).status_code == 403
        assert fleet.acts == []
        headers = {"X-CSRF-Token": await browser.csrf()}
        assert (await browser.post("/api/act", json=body, headers=headers)).json() == {"done": "cancel: done"}
        assert fleet.acts == [("cancel", ["c1"])]
        refused = await browser.post("/api/act", json={"action": "cancel", "ids": ["unknown"]}, headers=headers)
        assert (refused.status_code, refused.json()) == (409, {"error": "no run unknown: nothing was done"})
        for odd in (
            b"",
            b"[]",
            b"null",
            b'{"action":"rm","ids":[]}',
            b'{"action":"cancel","ids":[1]}',
            b"\xff",
            b"[" * 99_999,
        ):
            assert (await browser.post("/api/act", content=odd, headers=headers)).status_code == 400
        long = await browser.post("/api/act", content=b"x" * (page.BODY_BYTES + 1), headers=headers)
        assert long.status_code == 413
        assert len(fleet.acts) == 1


async def test_with_a_token_nobody_looks_without_it(fleet: Fleet) -> None:
    async with Browser(fleet, token="sesame") as browser:
        for path in ("/", "/?token=wrong", "/api/picture", "/api/stream", "/api/stack/c1", "/api/run/r1"):
            assert (await browser.get(path)).status_code == 401, path
        told = await browser.post("/api/act", json={})
        assert told.status_code == 401
        assert fleet.watches == 0
        opened = await browser.get("/?token=sesame")
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        cookie = opened.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert (await browser.get("/api/picture")).status_code == 200
    async with Browser(fleet, token="sesame") as browser:
        headers = {"Authorization": "Bearer sesame"}
        assert (await browser.get("/api/stack/c1", headers=headers)).json() == {"stack": "frames of c1"}
        assert (await browser.get("/api/run/r1", headers=headers)).json() == {"id": "r1"}
        unknown = await browser.get("/api/run/unknown", headers=headers)
        assert (unknown.status_code, unknown.json()) == (409, {"error": "no run unknown: nothing was found"})


@pytest.mark.parametrize("token", ["", "se\ncret", "gehe\u00efm", "\udcff"], ids=ascii)
async def test_no_page_has_a_token_that_everybody_or_nobody_brings(fleet: Fleet, token: str) -> None:
    """A request without a cookie brought the empty one."""
    with pytest.raises(ValueError, match="a token is printable ASCII, and not empty"):
        make_app(fleet, title="", token=token)


async def test_another_site_cannot_reach_it_by_a_name_of_its_own(fleet: Fleet) -> None:
    async with Browser(fleet, local_only=True) as browser:
        assert (await browser.get("/api/picture", headers={"Host": "evil.example:8000"})).status_code == 403
        assert fleet.watches == 0
        for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
            assert (await browser.get("/api/picture", headers={"Host": host})).status_code == 200, host


async def test_so_many_browsers_look_at_a_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a picture twice a second, whether it reads that or not."""
    monkeypatch.setattr(page, "VIEWERS", 2)
    async with Browser(fleet) as browser:
        looking = [page_stream(browser.app) for _ in range(2)]
        for stream in looking:
            assert (await anext(stream))["status"] == 200
            await anext(stream)
        refused = page_stream(browser.app)
        assert (await anext(refused))["status"] == 503
        for stream in (*looking, refused):
            await stream.aclose()


async def test_browsers_that_come_at_once_are_counted_too(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "VIEWERS", 2)
    async with Browser(fleet) as browser:
        looking = [page_stream(browser.app) for _ in range(5)]
        first = await asyncio.gather(*map(anext, looking))
        assert [message["status"] for message in first] == [200] * 2 + [503] * 3
        for stream in looking:
            await stream.aclose()
        again = page_stream(browser.app)
        assert (await anext(again))["status"] == 200
        await again.aclose()


async def page_stream(app: Any) -> AsyncGenerator[Any, None]:
    """Yield each message that the page sends to a browser: httpx waits for the end of an answer."""
    sent: asyncio.Queue[Any] = asyncio.Queue()
    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "GET", "path": "/api/stream", "headers": headers, "query_string": b""}
    task = asyncio.create_task(app(scope, asyncio.Event().wait, sent.put))
    try:
        while True:
            yield await sent.get()
    finally:
        task.cancel()
        await asyncio.wait([task])
