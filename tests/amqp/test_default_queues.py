"""Caller and worker that name different queues for atasks that name none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import atasks
from atasks import NoWorker, Transport, atask, get_router
from atasks.testing import Site, soon, until
from atasks.transport import unserved
from atasks.transport.backends.amqp.caller import overdue
from atasks.transport.backends.local import lookout
from tests.amqp.conftest import NewTransport


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers look at what waits sooner."""
    monkeypatch.setattr(overdue.OverdueCalls, "pause", 0.1)
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 0.1)


@pytest.fixture
def namespace(site: Site) -> str:
    """A namespace of this test's own."""
    return site.namespace


def _define(namespace: str, **options: Any) -> Callable[..., Any]:
    @atask(namespace=namespace, name="add", **options)
    async def add(a: int, b: int) -> int:
        return a + b

    return add


def _error(queue: str, worker: str) -> str:
    return (
        f"nothing serves queue 'default', and worker {worker} serves 'add' on queue {queue!r}: name that queue at "
        f"both sides, by queue={queue!r} of atasks.connect, ?queue={queue} of the URL, or @atask(queue={queue!r})"
    )


@pytest.mark.parametrize("where", ["option", "URL"])
async def test_a_queue_at_the_server_alone_is_an_error(
    amqp_url: str, prefix: str, namespace: str, amqp_leaks: None, where: str
) -> None:
    add, options = _define(namespace), {"prefix": prefix, "namespace": namespace}
    async with AsyncExitStack() as stack:
        if where == "URL":
            worker = await stack.enter_async_context(atasks.serve(f"{amqp_url}?queue=svc", **options))
        else:
            worker = await stack.enter_async_context(atasks.serve(amqp_url, queue="svc", **options))
        async with atasks.connect(amqp_url, **options):
            for call in (add(1, 2), add(3, 4)):
                with pytest.raises(NoWorker) as raised:
                    await soon(call)
                assert str(raised.value) == _error("svc", worker.id)
        async with atasks.connect(amqp_url, queue="svc", **options):
            assert await soon(add(1, 2)) == 3


async def test_the_server_may_come_after_the_call(
    amqp_url: str, prefix: str, namespace: str, amqp_leaks: None
) -> None:
    add, options = _define(namespace), {"prefix": prefix, "namespace": namespace}
    async with atasks.connect(amqp_url, **options):
        call = asyncio.create_task(add(1, 2))
        await asyncio.sleep(0.3)  # it has asked already, and nobody was there
        async with atasks.serve(amqp_url, queue="svc", **options) as worker:
            with pytest.raises(NoWorker) as raised:
                await soon(call)
            assert str(raised.value) == _error("svc", worker.id)


@pytest.mark.parametrize(
    "how", ["the call names it", "the atask names it", "the connection names it", "it was served"]
)
async def test_other_calls_wait(
    amqp_url: str, prefix: str, namespace: str, amqp_leaks: None, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(unserved, "WARN_SECONDS", 0.5)
    caplog.set_level(logging.WARNING, "atasks.amqp")
    options = {"prefix": prefix, "namespace": namespace}
    add = _define(namespace, queue="own") if how == "the atask names it" else _define(namespace)
    names = {"the connection names it": {"queue": "own"}}.get(how, {})
    if how == "it was served":
        monkeypatch.setattr(overdue, "EARLY_SECONDS", 0.1)
        monkeypatch.setattr(overdue, "SOONER_SECONDS", 0.1)
        async with atasks.serve(amqp_url, **options):
            pass
    async with atasks.serve(amqp_url, queue="svc", **options) as worker:
        if how == "the atask names it":
            await worker.transport.serve_no_more(worker, "own")
            add = add.options(queue="other")
        elif how == "the call names it":
            add = add.options(queue="own")
        async with atasks.connect(amqp_url, **options, **names):
            call = asyncio.create_task(add(1, 2))
            await asyncio.sleep(1.5)
            assert not call.done()
            said = [
                record.getMessage() for record in caplog.records if "waited for a worker" in record.getMessage()
            ]
            hint = f"; worker {worker.id} serves 'add' on queue 'svc'" in "".join(said)
            assert hint == (how in ("the connection names it", "it was served"))
            call.cancel()


async def test_around_a_hub_the_warning_names_the_queue(
    namespace: str, socket_path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unserved, "WARN_SECONDS", 0.5)
    add = _define(namespace)
    async with (
        atasks.serve(f"unix://{socket_path}?queue=svc", namespace=namespace) as worker,
        atasks.connect(f"unix://{socket_path}", namespace=namespace, hub=False),
    ):
        call = asyncio.create_task(add(1, 2))
        await until(lambda: f"; worker {worker.id} serves 'add' on queue 'svc'" in caplog.text)
        assert not call.done()
        call.cancel()


@pytest.mark.parametrize("by", ["activate", "activate inside of serve"])
async def test_an_atask_that_is_defined_after_activate_is_served_on_its_queue(
    amqp_url: str, prefix: str, namespace: str, new_transport: NewTransport, by: str
) -> None:
    options = {"prefix": prefix, "namespace": namespace}
    async with AsyncExitStack() as stack:
        if by == "activate":
            transport: Transport = new_transport(namespace, queue="svc")
            await transport.connect()
            stack.push_async_callback(transport.disconnect)
        else:
            transport = (await stack.enter_async_context(atasks.serve(amqp_url, queue="svc", **options))).transport
        router = get_router(namespace)
        await router.activate(transport)
        stack.push_async_callback(router.deactivate)
        _define(namespace, queue="late")
        async with atasks.connect(amqp_url, queue="svc", **options):
            item = router.registry.get("add")
            assert item is not None
            assert await soon(item.task(1, 2)) == 3
