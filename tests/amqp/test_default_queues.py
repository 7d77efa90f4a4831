"""Caller and worker that name different queues for atasks that name none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import atasks
from atasks import CallTimeout, Transport, atask, get_router
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
    monkeypatch.setattr(unserved, "WARN_SECONDS", 0.5)
    monkeypatch.setattr(unserved, "AGAIN_SECONDS", 1.0)


@pytest.fixture
def namespace(site: Site) -> str:
    """A namespace of this test's own."""
    return site.namespace


def _define(namespace: str, **options: Any) -> Callable[..., Any]:
    @atask(namespace=namespace, name="add", **options)
    async def add(a: int, b: int) -> int:
        return a + b

    return add


def _hint(queue: str, worker: str) -> str:
    return (
        f"; worker {worker} serves 'add' on queue {queue!r}: name that queue at both sides, by queue={queue!r} of "
        "atasks.connect or @atask"
    )


@pytest.mark.parametrize("where", ["option", "URL", "comes later"])
async def test_the_warning_names_the_queue_of_the_worker(
    amqp_url: str, prefix: str, namespace: str, amqp_leaks: None, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    add, options = _define(namespace), {"prefix": prefix, "namespace": namespace}
    serving = {
        "URL": lambda: atasks.serve(f"{amqp_url}?queue=svc", **options),
        "option": lambda: atasks.serve(amqp_url, queue="svc", **options),
    }.get(where)
    async with AsyncExitStack() as stack:
        worker = None if serving is None else await stack.enter_async_context(serving())
        async with atasks.connect(amqp_url, **options):
            call = asyncio.create_task(add(1, 2))
            if worker is None:
                await asyncio.sleep(0.3)  # it has asked already, and nobody was there
                worker = await stack.enter_async_context(atasks.serve(amqp_url, queue="svc", **options))
            await until(lambda: _hint("svc", worker.id) in caplog.text)
            assert not call.done()
            async with atasks.serve(amqp_url, **options):
                assert await soon(call) == 3
        async with atasks.connect(amqp_url, queue="svc", **options):
            assert await soon(add(1, 2)) == 3


@pytest.mark.parametrize("how", ["the call", "the atask"])
async def test_a_call_that_names_its_queue_is_not_looked_for_elsewhere(
    amqp_url: str, prefix: str, namespace: str, amqp_leaks: None, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    options = {"prefix": prefix, "namespace": namespace}
    add = _define(namespace, queue="own") if how == "the atask" else _define(namespace)
    async with atasks.serve(amqp_url, queue="svc", **options) as worker:
        if how == "the atask":
            await worker.transport.serve_no_more(worker, "own")
        async with atasks.connect(amqp_url, **options):
            call = asyncio.create_task(add.options(queue="other")(1, 2))
            await until(lambda: "waited for a worker" in caplog.text)
            assert not call.done()
            assert "serves 'add'" not in caplog.text
            call.cancel()


async def test_a_timeout_names_the_queue_of_the_worker(
    site: Site, amqp_url: str, prefix: str, namespace: str, socket_path: str, amqp_leaks: None
) -> None:
    add = _define(namespace).options(timeout=3)  # type: ignore[attr-defined]
    for url, options in ((amqp_url, {"prefix": prefix}), (f"unix://{socket_path}", {})):
        async with AsyncExitStack() as stack:
            serving: dict[str, Any] = {"namespace": namespace, "queue": "svc", **options}
            worker = await stack.enter_async_context(atasks.serve(url, **serving))
            calling = {"namespace": namespace, **options, **({} if options else {"hub": False})}
            await stack.enter_async_context(atasks.connect(url, **calling))
            with pytest.raises(CallTimeout) as raised:
                await soon(add(1, 2))
            assert f"nothing serves queue 'default'{_hint('svc', worker.id)}" in str(raised.value)


async def test_around_a_hub_the_warning_names_the_queue(
    namespace: str, socket_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    add = _define(namespace)
    async with (
        atasks.serve(f"unix://{socket_path}?queue=svc", namespace=namespace) as worker,
        atasks.connect(f"unix://{socket_path}", namespace=namespace, hub=False),
    ):
        call = asyncio.create_task(add(1, 2))
        await until(lambda: _hint("svc", worker.id) in caplog.text)
        assert not call.done()
        call.cancel()


async def test_a_connection_to_a_hub_is_left_well_while_a_call_waits_for_a_worker(
    namespace: str, socket_path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub then says that nothing serves the queue, and nobody is there to be asked for another one."""
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)
    add = _define(namespace)
    async with atasks.serve(f"unix://{socket_path}?queue=svc", namespace=namespace):
        async with atasks.connect(f"unix://{socket_path}", namespace=namespace, hub=False):
            call = asyncio.create_task(add(1, 2))
            await asyncio.sleep(0.2)
        with pytest.raises(atasks.CallConnectionLost):
            await soon(call)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


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
