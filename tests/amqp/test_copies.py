"""Calls that nobody awaits, and whose workers die: nobody can be asked which copy of one may start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from atasks import current_call, event
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp.worker.returned_request import ReturnedRequest
from tests.amqp.peer import Peer

GROUP = "events:paid:billing"


@pytest.mark.parametrize("kind", ["event", "keep=0", "kept"])
async def test_an_attempt_begins_when_what_its_worker_had_before_is_gone(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Else a call that kills its worker leaves two copies each time, and kills more than it may."""
    attempts: list[int] = []
    confirms: list[ReturnedRequest] = []

    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="billing")
    async def bill(order: int) -> None:
        attempts.append(current_call().attempt or 0)

    @site.atask(name="charge")
    async def charge(order: int) -> None:
        attempts.append(current_call().attempt or 0)

    makes: dict[str, Callable[[int], Awaitable[object]]] = {
        "event": paid,
        "keep=0": charge.options(keep=0).submit,
        "kept": charge.submit,
    }
    name = peer.work_queue(GROUP if kind == "event" else "default")
    async with site.open():
        await soon(site.worker.drain())
        await soon(makes[kind](7))
        queue = await peer.channel.get_queue(name)
        await (await queue.get()).nack(requeue=True)  # a worker had it, and has died
        monkeypatch.setattr(ReturnedRequest, "confirmed", lambda each: confirms.append(each))
        await site.serve()
        try:
            await until(lambda: len(confirms) == 1, "the second attempt is at the broker")
            await asyncio.sleep(0.3)
            begun = list(attempts)
        finally:
            monkeypatch.undo()
            for each in confirms:
                each.confirmed()
        assert begun == [], "what the worker had before is at the broker still"
        await until(lambda: len(attempts) == 1, "it begins")
        assert attempts == [2]
