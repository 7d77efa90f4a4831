"""A headless browser, and the commands that the page needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.cli.conftest import app, shell

__all__ = ["app", "browser_path", "open_page", "shell"]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser_path() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    if os.environ.get("CI"):
        pytest.fail("no browser: scripts/browser.sh installs one, as root on Debian")
    pytest.skip("no browser: install chromium, or run scripts/browser.sh as root on Debian")


@asynccontextmanager
async def open_page(path: str, **options: object) -> AsyncIterator[tuple[Browser, Page]]:
    """A browser with one page; whatever the page itself reports as an error fails the test."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="at-browser-") as home:
        async with async_playwright() as playwright:
            environ = {**os.environ, "HOME": home}
            browser = await playwright.chromium.launch(executable_path=path, args=FLAGS, env=environ)
            try:
                page = await browser.new_page(**options)  # type: ignore[arg-type]
                page.set_default_timeout(60_000)
                page.on("pageerror", lambda error: problems.append(str(error)))
                page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
                yield browser, page
            finally:
                await browser.close()
    expected = (
        "409 (Conflict)",
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_CONNECTION_RESET",
        "ERR_EMPTY",
    )
    assert [text for text in problems if not any(name in text for name in expected)] == []
