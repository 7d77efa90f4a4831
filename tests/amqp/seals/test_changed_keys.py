"""The key of a caller is replaced while calls are in flight: these go on under the one that sealed them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import atasks
from atasks.signing import keyfile
from atasks.submitted.handle import Handle
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.seals.attacker import refused, running, task_of
from tests.keys import KeyFiles


def change_key(site: Site, keys: KeyFiles, *, keep: bool = True) -> None:
    """Replace the key of the caller, as docs/security.md says; `keep`: its file has the old line still."""
    transport = site.caller
    assert isinstance(transport, AMQPTransport)
    assert transport.session.seals is not None
    new = keys.lines["shop2"] = keyfile.new_line("shop2")
    keys.update()
    keys.write("shop", new, *([keys.lines["shop"]] if keep else []))
    transport.session.seals.keys.reread()


async def test_a_stream_goes_on(site: Site, keys: KeyFiles) -> None:
    async with site.open():
        items = task_of(site, "count")(20_000).__aiter__()
        assert await soon(anext(items)) == 0
        change_key(site, keys)
        assert [item async for item in items] == list(range(1, 20_000))
        assert await soon(task_of(site, "echo")(1)) == 1
        assert refused(site.worker.transport) == refused(site.caller) == {}


async def test_a_call_is_cancelled(site: Site, keys: KeyFiles) -> None:
    async with site.open():
        task, call_id = await running(site)
        await until(lambda: site.worker.holds(call_id))
        change_key(site, keys, keep=False)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: site.worker.held == 0)
        assert refused(site.worker.transport) == {}


async def test_a_call_is_asked_for_and_sent_again(site: Site, keys: KeyFiles) -> None:
    async with site.open():
        task, call_id = await running(site)
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        pending = transport.session.pendings[call_id]
        await until(lambda: pending.confirmed)
        change_key(site, keys)
        transport.calling.overdue.suspect([pending])
        await until(lambda: pending.where is not None, "the worker has it")
        transport.calling.requests.resend([pending], "a test says so")
        await until(lambda: pending.confirmed)
        assert await soon(task_of(site, "echo")(1)) == 1  # what came before it has been read
        assert not task.done()
        assert refused(site.worker.transport) == {}
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: site.worker.held == 0)


async def test_a_call_that_has_not_left_goes_under_the_new_key(site: Site, keys: KeyFiles) -> None:
    """And its stream does."""
    async with site.open():
        first = asyncio.create_task(anext(items := task_of(site, "count")(20_000).__aiter__()))
        await asyncio.sleep(0)  # it is on its way to the outbox
        change_key(site, keys, keep=False)
        assert await soon(first) == 0
        assert [item async for item in items] == list(range(1, 20_000))
        assert refused(site.worker.transport) == refused(site.caller) == {}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_submitted_call_is_awaited_and_cancelled(
    site: Site, keys: KeyFiles, amqp_url: str, prefix: str, restarted: bool
) -> None:
    """Also by the program's next process, whose file has both lines."""
    async with site.open():
        ended = await task_of(site, "echo").submit(1)
        runs = await task_of(site, "forever").submit()
        await until(lambda: site.worker.holds(runs.id))
        change_key(site, keys)
        if not restarted:
            await check(ended, runs, site)
        else:
            path = keys.folder / "shop.keys"
            async with atasks.connect(amqp_url, namespace=site.namespace, prefix=prefix, keys=path):
                await check(atasks.attach(ended.dumps()), atasks.attach(runs.dumps()), site)


async def check(ended: Handle[Any], runs: Handle[Any], site: Site) -> None:
    """Both are the caller's still."""
    assert await soon(ended) == 1
    await runs.cancel()
    await until(lambda: site.worker.held == 0)
    assert refused(site.worker.transport) == refused(site.caller) == {}
