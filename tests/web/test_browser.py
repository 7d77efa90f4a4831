"""The page in a browser, by clicking through it, over real workers and a real broker."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from playwright.async_api import Page, expect

import atasks
from atasks import atask
from atasks.pipeline import collect, map
from tests.broker import Broker
from tests.brokers.ports import free_ports
from tests.cli.app import App
from tests.cli.command import Command, Done
from tests.cli.conftest import open_app
from tests.cli.shell import Shell
from tests.web.conftest import open_page

expect.set_options(timeout=60_000)

TASKS = """
    import asyncio, pathlib
    from atasks import atask

    @atask(namespace="NAMESPACE")
    async def leaf():
        await asyncio.Event().wait()

    @atask(namespace="NAMESPACE")
    async def branch():
        await leaf()

    @atask(namespace="NAMESPACE")
    async def root():
        await asyncio.gather(branch(), branch())

    @atask(namespace="NAMESPACE", queue="other")
    async def elsewhere():
        await asyncio.Event().wait()

    @atask(namespace="NAMESPACE")
    async def stuck():
        await leaf.options(queue="nowhere")()

    @atask(namespace="NAMESPACE")
    async def fail():
        raise ValueError("<img src=x onerror=window.hacked=1><b>bold</b>")

    @atask(namespace="NAMESPACE", name="tasks.<b>\\u202egnorw</b>")
    async def odd():
        raise type("<i>Odd</i>", (Exception,), {})("\\u202etxt.exe \\x1b[31m \\x00 \\ufeff")
"""
CLIENT = """
    import asyncio, tasks
    from atasks import CallCancelled

    async def aiomain(task):
        try:
            await getattr(tasks, task)()
        except CallCancelled:
            print("cancelled", flush=True)
        except Exception:
            print("failed", flush=True)
"""

CUT = """() => [...document.querySelectorAll("#list .call")].flatMap(row => {
    const name = row.querySelector(".name"), age = row.querySelector(".end > :last-child");
    const end = Math.min(row.getBoundingClientRect().right, age.parentElement.getBoundingClientRect().right);
    const whole = name.scrollWidth <= name.clientWidth && age.getBoundingClientRect().right <= end + 1;
    return whole ? [] : [row.innerText];
})"""
"""The rows of the list whose name or age cannot be seen whole."""
EDGES = """() => [...new Set([...document.querySelectorAll("#list .call .end > :last-child")].map(
    age => Math.round(age.getBoundingClientRect().right)))]"""
"""The right edges of the ages in the list."""


class Site:
    """A worker, clients, and the page, in processes of their own."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.port = free_ports(1)[0]
        app.shell.write("tasks.py", TASKS.replace("NAMESPACE", app.namespace))
        app.shell.write("client.py", CLIENT)
        self.worker = app.serve()
        self.page = self.show()

    def show(self) -> Command:
        where = ("--namespace", self.app.namespace, "--port", str(self.port), "--allow-changes")
        command = self.app.shell.start("web", *where, env=self.app.env)
        command.wait_for("page at")
        return command

    async def call(self, task: str) -> Command:
        return await asyncio.to_thread(self.app.call, task)


async def watching(page: Page) -> None:
    await expect(page.locator("#state")).to_have_text("watching")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Site]:
    """A worker and a page that several tests look at; each of them ends the calls that it makes."""
    with open_app(Shell(tmp_path_factory.mktemp("site")), broker) as app:
        yield Site(app)


@pytest.fixture
async def page(browser_path: str) -> AsyncIterator[Page]:
    """An empty page in a browser, 1280 pixels wide."""
    async with open_page(browser_path, viewport={"width": 1280, "height": 800}) as (_, page):
        yield page


async def go(page: Page, site: Site, view: str = "") -> None:
    await page.goto(f"http://127.0.0.1:{site.port}/#{view}")
    await watching(page)


async def ended(client: Command) -> Done:
    return await asyncio.to_thread(client.finish)


async def end(client: Command) -> None:
    client.signal(SIGTERM)
    await ended(client)


async def test_tree_grows_while_it_is_looked_at(page: Page, site: Site) -> None:
    await go(page, site, "calls")
    await expect(page.get_by_text("No call is live now.")).to_be_visible()
    client = await site.call("root")
    rows = page.get_by_role("treeitem")
    await expect(rows).to_have_count(5)
    await expect(rows.nth(0)).to_contain_text("tasks.root")
    assert [await rows.nth(n).get_attribute("aria-level") for n in range(5)] == ["1", "2", "3", "2", "3"]
    await expect(rows.nth(0).locator(".state")).to_have_text("parked")
    await expect(rows.nth(2).locator(".state")).to_have_text("running")

    await page.locator("#list").focus()
    for key in ("ArrowDown", "ArrowLeft"):
        await page.keyboard.press(key)
    await expect(rows).to_have_count(1)
    await page.keyboard.press("ArrowRight")
    await expect(rows).to_have_count(5)
    await page.keyboard.press("/")
    await expect(page.get_by_role("searchbox")).to_be_focused()
    await page.keyboard.type("root")
    await expect(page.locator("#shown")).to_have_text("1 of 5 live calls")
    await end(client)
    await expect(page.locator("#shown")).to_have_text("0 live calls")


async def test_stack_of_a_call_and_its_end(page: Page, site: Site) -> None:
    await go(page, site, "calls")
    client = await site.call("root")
    rows = page.get_by_role("treeitem")
    await expect(rows).to_have_count(5)
    await rows.nth(2).locator(".link").click()
    frames = page.locator("#dialog pre").last
    async with asyncio.timeout(60):
        while "tasks.py" not in await frames.inner_text():  # a busy worker may answer too late
            await page.get_by_role("button", name="Stack").click()
            await expect(frames).not_to_have_text("asking its worker", timeout=20_000)
    await page.keyboard.press("Escape")

    await rows.nth(0).locator(".link").click()
    await page.get_by_role("button", name="Cancel call").click()
    await expect(page.get_by_text("Cancel this call?")).to_be_visible()
    await page.get_by_role("button", name="Keep").click()
    await expect(rows).to_have_count(5)
    await rows.nth(0).locator(".link").click()
    await page.get_by_role("button", name="Cancel call").click()
    await page.locator("#confirm").click()
    await expect(page.locator("#dialog-title")).to_have_text("Done")
    assert (await ended(client)).out == "cancelled\n"
    await page.get_by_role("button", name="Close").click()
    await expect(page.get_by_text("No call is live now.")).to_be_visible()


async def test_a_slow_click_counts(page: Page, site: Site) -> None:
    """The list is drawn each second: not while something in it is pressed."""
    await go(page, site, "calls")
    client = await site.call("root")
    await expect(page.get_by_role("treeitem")).to_have_count(5)
    await page.get_by_role("treeitem").nth(2).locator(".link").hover()
    await page.mouse.down()
    age = page.get_by_role("treeitem").nth(0).locator(".end > :last-child")
    before = await age.inner_text()
    await asyncio.sleep(2.5)
    assert await age.inner_text() == before
    await page.mouse.up()
    await expect(page.get_by_role("button", name="Stack")).to_be_visible()
    await expect(age).not_to_have_text(before)
    await page.keyboard.press("Escape")
    await end(client)


async def test_failure_has_its_traceback_and_runs_nothing(page: Page, site: Site) -> None:
    await go(page, site, "failures")
    assert (await ended(await site.call("fail"))).out == "failed\n"
    failure = page.locator("details").first
    await expect(failure).to_contain_text("ValueError in tasks.fail")
    await failure.locator("summary").click(position={"x": 60, "y": 18})  # beside the link to the call
    await expect(failure.locator("pre")).to_be_visible()
    await expect(failure.locator("pre")).to_contain_text("<img src=x onerror=window.hacked=1>")
    assert await page.evaluate("window.hacked") is None
    await page.get_by_role("tab", name="Now").click()
    await expect(page.get_by_text("tasks.fail ended in ValueError")).to_be_visible()


async def test_what_cannot_be_seen_is_shown_as_numbers(page: Page, site: Site) -> None:
    await go(page, site, "failures")
    assert (await ended(await site.call("odd"))).out == "failed\n"
    failure = page.locator("details").first
    await expect(failure).to_contain_text(r"<i>Odd</i> in tasks.<b>\u{202e}gnorw</b>")
    await failure.locator("summary").click(position={"x": 60, "y": 18})
    await expect(failure.locator("pre")).to_contain_text(r"\u{202e}txt.exe \u{1b}[31m \u{0} \u{feff}")
    await page.get_by_role("tab", name="Timeline").click()
    await expect(page.locator("#lanes")).to_be_visible()
    await expect(page.locator(".legend")).to_contain_text("failed")


async def test_queue_that_no_worker_ever_had(page: Page, site: Site) -> None:
    await go(page, site)
    stuck = await site.call("stuck")
    await expect(page.get_by_text("queue nowhere has 1 waiting call and no worker")).to_be_visible()
    await page.get_by_role("tab", name="Calls").click()
    await expect(page.get_by_role("treeitem")).to_have_count(2)
    assert len(await page.evaluate(EDGES)) == 1  # of a call that no worker has, too
    await page.get_by_role("tab", name="Queues").click()
    await page.get_by_role("button", name="Purge queue nowhere").click()
    await page.locator("#confirm").click()
    await expect(page.locator("#dialog-title")).to_have_text("That could not be done")
    await expect(page.locator("#dialog")).to_contain_text("start a worker for it, or cancel the calls")
    await page.get_by_role("button", name="Close").click()
    await page.get_by_role("tab", name="Now").click()
    await end(stuck)
    await expect(page.locator("#view").get_by_text("queue nowhere")).to_have_count(0)


async def test_runs_that_the_broker_cannot_list(page: Page, site: Site) -> None:
    await go(page, site, "runs")
    await expect(page.get_by_text("No list: each record at the broker is a queue of its own")).to_be_visible()


async def test_queue_that_loses_its_worker(page: Page, app: App) -> None:
    site = await asyncio.to_thread(Site, app)
    await go(page, site)
    await expect(page.get_by_text("Nothing is wrong now.")).to_be_visible()
    waiting = await site.call("elsewhere")
    await page.get_by_role("tab", name="Calls").click()
    await expect(page.get_by_role("treeitem")).to_have_count(1)
    site.worker.signal(SIGKILL)
    await page.get_by_role("tab", name="Now").click()
    await expect(page.get_by_text("queue other has 1 waiting call and no worker")).to_be_visible()
    await end(waiting)


async def test_server_of_the_page_goes_away_and_comes_back(page: Page, app: App) -> None:
    site = await asyncio.to_thread(Site, app)
    await go(page, site)
    site.page.signal(SIGKILL)
    await ended(site.page)
    await expect(page.locator("#state")).to_have_text("the page's server is away; trying again")
    again = await asyncio.to_thread(site.show)
    await watching(page)
    again.signal(SIGINT)
    assert (await ended(again)).code in (0, 130)


async def test_queues_are_steered(app: App, page: Page, broker: Broker, prefix: str) -> None:
    app.env = {"ATASKS_URL": f"{app.env['ATASKS_URL']}?prefix={prefix}"}  # nobody else's messages are retried
    site = await asyncio.to_thread(Site, app)
    work = f"{prefix}.q.{app.namespace}"
    await go(page, site, "queues")
    row = page.get_by_role("row").filter(has_text="other")

    async def press(name: str, answer: str, said: str) -> None:
        await page.get_by_role("button", name=name).click()
        if answer == "Keep":
            await page.get_by_role("button", name="Keep").click()
            return
        await page.locator("#confirm").click()
        await expect(page.locator("#dialog-title")).to_have_text("Done")
        await expect(page.locator("#dialog")).to_contain_text(said)
        await page.get_by_role("button", name="Close").click()

    await press("Pause queue other", "yes", "Queue other is paused for 1 worker, and for those that come.")
    await expect(row).to_contain_text("paused")
    client = await site.call("elsewhere")
    await expect(row.get_by_role("cell").nth(1)).to_have_text("1")
    await page.get_by_role("tab", name="Now").click()
    await expect(page.get_by_text("queue other is paused, with 1 waiting call")).to_be_visible()
    await page.get_by_role("tab", name="Queues").click()
    await press("Purge queue other", "Keep", "")
    assert client.process.poll() is None
    await press("Purge queue other", "yes", "1 call of queue other ended.")
    assert (await ended(client)).out == "cancelled\n"
    await press("Resume queue other", "yes", "Queue other is resumed for 1 worker.")
    await expect(row).to_contain_text("served")

    with broker.channel() as channel:
        channel.basic_publish("", f"{work}.default", b"who knows")
    await expect(page.get_by_text("1 dead message could be neither read nor answered")).to_be_visible()
    await press("Retry all", "yes", "Back in their queues: 1 message.")
    await page.set_viewport_size({"width": 390, "height": 800})
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    for command in (site.page, site.worker):
        command.signal(SIGINT)
        await ended(command)
    with broker.channel() as channel:
        for name in (
            f"{prefix}.dead",
            f"{work}.default",
            f"{work}.other",
            f"{work}.default.solo",
            f"{work}.other.solo",
        ):
            channel.queue_delete(name)
        for name in ("control", "events", "due", "due.early"):
            channel.exchange_delete(f"{prefix}.{name}")


async def test_submitted_runs(app: App, browser_path: str, prefix: str, postgres_url: str) -> None:
    url = f"{app.env['ATASKS_URL']}?prefix={prefix}"
    broken, gate = [True], asyncio.Event()

    @atask(namespace=app.namespace, name="shop.total")
    async def total(numbers: list[int]) -> int:
        await gate.wait()
        return len(numbers)

    @atask(namespace=app.namespace, name="shop.double")
    async def double(n: int) -> int:
        return 2 * n

    @atask(namespace=app.namespace, name="shop.pay")
    async def pay(card: str) -> str:
        if broken:
            raise LookupError("<b>no such order</b>")
        return card

    port = free_ports(1)[0]
    where = ("--url", url, "--namespace", app.namespace, "--port", str(port), "--allow-changes")
    env = {"ATASKS_RECORDS": postgres_url}
    async with (
        atasks.serve(url, namespace=app.namespace, records=postgres_url),
        open_page(browser_path, viewport={"width": 1280, "height": 800}) as (_, page),
    ):
        server = await asyncio.to_thread(app.shell.start, "web", *where, env=env)
        await asyncio.to_thread(server.wait_for, "page at")
        run = await (map(double) | collect() | map(total)).submit(1)
        paid = await pay.submit("a-secret")
        with pytest.raises(LookupError):
            await paid
        await page.goto(f"http://127.0.0.1:{port}/#runs")
        rows = page.get_by_role("row")
        of_run, of_pay = (rows.filter(has=page.get_by_title(handle.id)) for handle in (run, paid))
        await expect(of_run).to_contain_text("open")
        await expect(of_run).to_contain_text("2 of 3")
        await expect(of_pay).to_contain_text("raised")
        gate.set()
        await expect(of_run).to_contain_text("value")

        async def press(name: str) -> None:
            await page.get_by_title(paid.id).click()
            await page.get_by_role("button", name=name).click()
            await page.locator("#confirm").click()
            await expect(page.locator("#dialog-title")).to_have_text("Done")
            await page.get_by_role("button", name="Close").click()

        await page.get_by_role("searchbox").fill(paid.id)
        await page.keyboard.press("Enter")
        await expect(page.locator("#dialog pre")).to_contain_text("<b>no such order</b>")
        assert "a-secret" not in await page.content()
        await page.get_by_role("button", name="Close").click()
        broken.clear()
        await press("Retry run")
        assert await paid == "a-secret"
        await expect(of_pay).to_contain_text("value")
        await page.set_viewport_size({"width": 390, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await press("Drop run")
        await expect(of_pay).to_have_count(0)
        server.signal(SIGINT)
        await asyncio.to_thread(server.finish)


async def test_thousands_of_calls_and_small_screens(browser_path: str) -> None:
    port = free_ports(1)[0]
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.web.crowd", str(port))
    try:
        async with open_page(browser_path, viewport={"width": 390, "height": 800}) as (_, page):
            for _ in range(200):
                try:
                    await page.goto(f"http://127.0.0.1:{port}/#calls")
                    break
                except Exception:
                    await asyncio.sleep(0.1)
            await expect(page.locator("#shown")).to_have_text("5000 live calls")
            began = time.monotonic()
            for place in (0, 40_000, 100_000, 149_000):
                await page.locator("#list").evaluate("(list, place) => { list.scrollTop = place; }", place)
                await expect(page.get_by_role("treeitem").first).to_be_visible()
                assert await page.get_by_role("treeitem").count() < 60
            assert time.monotonic() - began < 60
            assert await page.evaluate(CUT) == []  # no name and no age makes room for a long note
            backs = set()
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                backs.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
                for view in ("Now", "Calls", "Timeline", "Failures", "Atasks", "Workers", "Queues", "Runs"):
                    await page.get_by_role("tab", name=view).click()
                    await expect(page.get_by_role("tab", name=view)).to_have_attribute("aria-selected", "true")
                    assert await page.evaluate("document.documentElement.scrollWidth") <= 390, view
            assert len(backs) == 2
    finally:
        server.terminate()
        await server.wait()
