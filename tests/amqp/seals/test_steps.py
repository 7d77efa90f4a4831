"""Steps of calls that resume, at a worker that takes their caller for no worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from atasks import MsgpackCodec
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
