"""Take docs/web.png, a picture of the live page, with chromium: python scripts/site/page.py URL [FILE].

It serves and calls a small shop by two worker processes over the broker at URL, with a prefix of its own, and
looks at the page of `atasks web`. Beside FILE it writes pictures of the dark page, and of one 390 pixels wide.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

from playwright.async_api import Page, async_playwright

SHOP = """
import asyncio
import random

from atasks import atask, current_call


@atask
async def order(number: int) -> None:
    await asyncio.gather(invoice(number), reserve(number), ship.options(timeout=90)(number))


@atask
async def invoice(number: int) -> None:
    await asyncio.gather(render(number), *(price(number) for _ in range(2)))


@atask
async def render(number: int) -> None:
    for page in range(40):
        current_call().report(page, 40, "pages")
        await asyncio.sleep(0.25)


@atask
async def price(number: int) -> float:
    await asyncio.sleep(random.uniform(0.5, 9))
    return 3.5


@atask
async def reserve(number: int) -> None:
    await asyncio.sleep(random.uniform(0.5, 9))


@atask(queue="dispatch")
async def ship(number: int) -> None: ...


@atask
async def charge(card: str) -> None:
    await asyncio.sleep(random.uniform(0.1, 2))
    raise ConnectionError("the bank does not answer")


async def aiomain(mode: str) -> None:
    while mode == "client":
        number = random.randrange(10_000)
        asyncio.gather(order(number), charge("a card"), return_exceptions=True)
        await asyncio.sleep(1.5)
"""


async def started(folder: str, url: str, word: str, *arguments: str) -> Process:
    """A command that has said `word`."""
    command = (sys.executable, "-m", "atasks", *arguments)
    env = {**os.environ, "ATASKS_URL": url}
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=env, stdout=PIPE, stderr=STDOUT)
    assert process.stdout is not None
    while word and word not in (line := (await process.stdout.readline()).decode()):
        assert line, f"{arguments} has ended"
    return process


async def pictures(page: Page, port: int, file: Path) -> None:
    """Three looks at the page."""
    await page.goto(f"http://127.0.0.1:{port}/#calls")
    await page.wait_for_timeout(14_000)
    await page.screenshot(path=file)
    await page.emulate_media(color_scheme="dark")
    await page.screenshot(path=file.with_stem(f"{file.stem}-dark"))
    await page.set_viewport_size({"width": 390, "height": 800})
    await page.screenshot(path=file.with_stem(f"{file.stem}-390"))
    for view in ("Now", "Queues", "Workers", "Runs"):
        await page.get_by_role("tab", name=view).click()
        await page.wait_for_timeout(300)
        await page.screenshot(path=file.with_stem(f"{file.stem}-390-{view.lower()}"))


async def main(broker: str, file: str = "docs/web.png") -> None:
    """Run the shop, look, and end it."""
    url = f"{broker}?prefix=picture{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop.py").write_text(SHOP)
        serve = (
            "run",
            "shop.py",
            "--mode",
            "server",
            "--workers",
            "2",
            "--concurrency",
            "40",
            "--queue",
            "default",
        )
        processes = [
            await started(folder, url, "2 workers serve", *serve),
            await started(folder, url, "page at", "web", "--port", str(port)),
            await started(folder, url, "", "run", "shop.py", "--mode", "client"),
        ]
        found = shutil.which("chromium") or shutil.which("google-chrome")
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox", "--disable-gpu"]
            )
            page = await browser.new_page(viewport={"width": 1100, "height": 640})
            await pictures(page, port, Path(file))
            await browser.close()
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)
            await process.communicate()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
