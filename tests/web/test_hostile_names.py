"""Names and texts of strangers in every place of the page, in a browser: each is drawn as text."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from playwright.async_api import expect

from atasks.errors import UnknownRun
from atasks.tracking import TaskCounts
from atasks.web.picture import Picture
from atasks.web.server import make_app
from tests.web.conftest import open_page

MARKUP = (
    "<img src=//evil.example/x onerror=window.hacked=1><script>window.hacked=1</script><b style=color:red>b</b>"
    "</textarea><svg onload=window.hacked=1>{{csrf}}${1}javascript:window.hacked=1'\"`"
)
UNSEEN = "\u202egnorw\u2066\x1b[31m\x9b2J\0\ufeff\u200b\ud800"
ODD = MARKUP + UNSEEN
VIEWS = ("Now", "Calls", "Timeline", "Failures", "Atasks", "Workers", "Queues", "Runs")

FOUND = """() => ({
    hacked: window.hacked,
    elements: document.querySelectorAll("img, svg, b:not(.figure b), script:not([src]), textarea").length,
    unseen: (document.body.innerText.match(/[\\p{Cf}\\p{Cs}\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]/gu) || []).length,
    titles: [...document.querySelectorAll("[title]")].filter(node => /\\u202e/.test(node.title)).length,
})"""


class Stranger:
    """A feed all of whose words are odd."""

    async def run(self, picture: Picture) -> None:
        picture.connected, picture.reason, picture.note, picture.runs_note = True, ODD, ODD, ODD
        texts = dict.fromkeys(("task", "queue", "worker", "note", "awaits", "type", "traceback", "status"), ODD)
        picture.take({"kind": "started", "id": "c1", **texts})
        picture.take({"kind": "started", "id": ODD[:64], **texts, "parent": "c1", "root": "c1"})
        picture.take({"kind": "ended", "id": "c2", **texts})
        picture.take({"kind": "worker", "worker": ODD, "host": ODD, "queues": [ODD], "version": ODD, "pid": ODD})
        picture.count({ODD: TaskCounts(ODD, started=1, ended={ODD: 1})})
        picture.queues = [{"queue": ODD, "ready": 1, "consumers": 0, "paused": True}]
        run = dict.fromkeys(("task", "queue", "worker", "state"), ODD)
        picture.runs = [{"id": "r1", "submitted": 1.0, "due": 0.0, "ended": None, "stages": None, **run}]
        await asyncio.Event().wait()

    async def act(self, action: str, ids: Sequence[str]) -> str:
        raise UnknownRun(ODD)

    async def stack(self, call_id: str) -> dict[str, Any]:
        return {"stack": ODD.encode("utf-8", "replace").decode()}

    async def submitted(self, run_id: str) -> dict[str, Any]:
        raise UnknownRun(ODD.encode("utf-8", "replace").decode())


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The address of the page."""
    app = make_app(Stranger(), title=MARKUP, allow_changes=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            await serving


async def test_names_of_strangers_are_drawn_as_text(browser_path: str) -> None:
    async with served() as url, open_page(browser_path) as (_, page):
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(request.url))
        await page.goto(url)
        await expect(page.locator("#state")).to_have_text("watching")

        async def check(where: str) -> None:
            found = await page.evaluate(FOUND)
            assert found == {"hacked": None, "elements": 0, "unseen": 0, "titles": 0}, where

        for view in VIEWS:
            await page.get_by_role("tab", name=view).click()
            await expect(page.get_by_role("tab", name=view)).to_have_attribute("aria-selected", "true")
            if view != "Timeline":
                await expect(page.locator("#view")).to_contain_text("<img src=//evil.example/x")
            await check(view)
        await page.get_by_role("tab", name="Calls").click()
        await page.get_by_role("treeitem").first.locator(".link").click()
        await page.get_by_role("button", name="Stack").click()
        await expect(page.locator("#dialog pre:visible")).to_contain_text("<img src=//evil.example/x")
        await check("a call")
        await page.get_by_role("button", name="Cancel call").click()
        await page.locator("#confirm").click()
        await expect(page.locator("#dialog-title")).to_have_text("That could not be done")
        await check("what was refused")
        assert {address for address in asked if not address.startswith(url)} == set()


async def test_a_link_that_was_cut_opens_the_page(browser_path: str) -> None:
    async with served() as url, open_page(browser_path) as (_, page):
        await page.goto(f"{url}#calls/%E0%A4%A")
        await expect(page.locator("#state")).to_have_text("watching")
