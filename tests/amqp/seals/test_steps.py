"""Steps of calls that resume, at a worker that takes their caller for no worker, and behind a change of keys."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from atasks import MsgpackCodec, once
from atasks.signing import keyfile
from atasks.testing import Site, soon
from atasks.transport.backends.amqp import AMQPTransport
from tests.keys import KeyFiles


@pytest.mark.usefixtures("amqp_leaks")
async def test_a_step_runs_although_its_worker_believes_no_journal_of_its_caller(
    amqp_url: str, prefix: str, tmp_path: Path
) -> None:
    """The key of the caller may serve, by its own file; by that of the worker of the step it may only call."""
    files = KeyFiles(tmp_path)
    shop, bank = keyfile.new_line("shop", "serve"), keyfile.new_line("bank", "serve")
    shops, banks = files.write("shops", shop, bank), files.write("banks", bank, shop.replace(" serve", ""))
    keys = iter([shops, shops, banks])
    site = Site(lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, keys=next(keys)))
    MsgpackCodec(site.namespace)

    @site.atask(name="step", queue="steps")
    async def step(number: int) -> int:
        return number

    @site.atask(name="outer", queue="outer", resume=True)
    async def outer() -> int:
        return await step(1)

    async with site.open(serve=False):
        await site.serve(queues=["outer"])
        await site.serve(queues=["steps"])
        assert await soon(outer()) == 1
    site.close()


@pytest.mark.usefixtures("amqp_leaks")
@pytest.mark.parametrize("keeps", [True, False])
async def test_steps_under_an_old_key_of_a_worker_are_found_while_its_line_is_there_and_else_a_warning_says_so(
    amqp_url: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, keeps: bool
) -> None:
    files = KeyFiles(tmp_path)
    shop, old, new = keyfile.new_line("shop"), keyfile.new_line("old", "serve"), keyfile.new_line("new", "serve")
    shops, before = files.write("shops", shop), files.write("before", old, shop)
    after = files.write("after", new, *([old] if keeps else []), shop)
    keys = iter([shops, before, after])
    site = Site(lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix, keys=next(keys)))
    MsgpackCodec(site.namespace)
    made: list[int] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    @site.atask(name="step")
    async def step(number: int) -> int:
        made.append(number)
        return number

    @site.atask(name="parent", resume="strict")
    async def parent() -> int:
        done = await step(1) + await once(step.local, 2)
        begun.set()
        await go_on.wait()
        return done + await step(4)

    async with site.open():
        task = asyncio.create_task(parent())
        await soon(begun.wait())
        with caplog.at_level(logging.WARNING, "atasks.resume"):
            await site.serve()
            await site.worker.drain(0)
            go_on.set()
            assert await soon(task) == 7
        assert made == ([1, 2, 4] if keeps else [1, 2, 1, 2, 4])
        told = [record.getMessage() for record in caplog.records if record.name == "atasks.resume"]
        if keeps:
            assert not told
        else:
            (warning,) = told
            assert "parent, call " in warning
            assert "does not believe 3 messages in its journal: no worker's key in its file" in warning
    site.close()
