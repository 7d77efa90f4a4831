"""Channels and questions outlive the calls that they are first needed for, and keep none of their payloads."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

import pytest

import atasks
from atasks.testing import Site, until
from atasks.worker.held_call import HeldCall


def kept(site: Site) -> list[HeldCall]:
    """The calls of these workers that are in memory, whoever keeps them."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is HeldCall and each.worker in site.workers]


@pytest.mark.parametrize("kind", ["submits", "awaits_a_record", "gives_up", "limited"])
async def test_no_ended_call_is_kept_for_what_it_asked_the_broker(site: Site, kind: str) -> None:
    limit = atasks.Limit("few", at_once=2, namespace=site.namespace)

    @site.atask()
    async def inner() -> None: ...

    @site.atask()
    async def submits() -> None:
        await inner.submit()

    @site.atask()
    async def awaits_a_record() -> None:
        await (await inner.submit())

    @site.atask()
    async def gives_up() -> None:
        handle = await inner.options(delay=3600).submit()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await handle

    @site.atask(limit=limit)
    async def limited() -> None: ...

    calls = {each.name.rpartition(".")[2]: each for each in (submits, awaits_a_record, gives_up, limited)}
    async with site.open(), asyncio.timeout(60):  # a timer that comes before those that are cancelled
        await calls[kind]()
        await until(lambda: not kept(site), "nobody keeps a call", within=20)
