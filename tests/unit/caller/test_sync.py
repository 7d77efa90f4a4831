"""Calls from code without an event loop."""

# Private attributes: `Router._connected`: a connection that was forgotten is seen nowhere else.

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

import atasks
from atasks import CallConnectionLost, CallTimeout, InvalidURL, NotConnected, current_call, get_router
from atasks.definitions import ATask
from atasks.tasks import atask
from atasks.testing import PATIENCE, soon, until
from tests.unit.serving import idle, locating, serve


@pytest.fixture
def add(namespace: str) -> ATask[[int, int], int]:
    @atask(namespace=namespace)
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    return add


def background() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "atasks-sync"]


def test_a_value_and_an_exception(add: ATask[[int, int], int], namespace: str) -> None:
    @atask(namespace=namespace)
    async def fail() -> None:
        raise KeyError("it")

    with atasks.connect_sync("loopback:", namespace=namespace) as transport:
        assert isinstance(transport, atasks.LoopbackTransport)
        assert add.sync(1, b=2) == 3
        with pytest.raises(KeyError) as caught:
            fail.sync()
        assert "in fail" in str(caught.value.__cause__)
    assert background() == []


def test_many_threads_call_at_once(namespace: str) -> None:
    barrier = asyncio.Barrier(8)

    @atask(namespace=namespace)
    async def meet(number: int) -> int:
        await barrier.wait()
        return number

    with atasks.connect_sync(namespace=namespace), ThreadPoolExecutor(8) as views:
        assert list(views.map(meet.sync, range(80))) == list(range(80))


def test_a_wrong_argument_is_a_type_error_before_anything_else(add: ATask[[int, int], int]) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        add.sync(1)  # type: ignore[call-arg]  # that is the point


def test_without_a_connection(add: ATask[[int, int], int], namespace: str) -> None:
    advice = r"enter `with atasks.connect_sync\(\"amqp://localhost/\", namespace='{}'\)` or another URL first"
    with pytest.raises(NotConnected, match=advice.format(namespace)):
        add.sync(1, 2)
    with (
        atasks.connect_sync(namespace=f"{namespace}-other"),
        pytest.raises(NotConnected, match=advice.format(namespace)),
    ):
        add.sync(1, 2)
    atasks.namespaces.namespaces.unregister(f"{namespace}-other")


async def test_where_an_event_loop_runs(add: ATask[[int, int], int], namespace: str) -> None:
    async with atasks.connect(namespace=namespace):
        with pytest.raises(RuntimeError, match=r"add\.sync\(\) blocks, and an event loop runs .*: `await` it"):
            add.sync(1, 2)
        with pytest.raises(RuntimeError, match=r"`async with atasks.connect\(...\)` instead"):
            atasks.connect_sync(namespace=namespace).__enter__()


async def test_where_gevent_has_replaced_threads(
    add: ATask[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkey = types.ModuleType("gevent.monkey")
    monkey.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with pytest.raises(RuntimeError, match=r"gevent has made greenlets .*: .*patch_all\(thread=False\)"):
        add.sync(1, 2)


def test_options_apply(namespace: str) -> None:
    @atask(namespace=namespace)
    async def nap() -> None:
        await asyncio.Event().wait()

    with atasks.connect_sync(namespace=namespace), pytest.raises(CallTimeout, match=r"within 0.05 s"):
        nap.options(timeout=0.05).sync()


def test_a_nested_connection_shadows_the_outer_one_until_it_ends(
    add: ATask[[int, int], int], namespace: str
) -> None:
    where = locating(namespace)
    with atasks.connect_sync(namespace=namespace) as outer:
        assert where.sync() == id(outer)
        with atasks.connect_sync(namespace=namespace) as inner:
            assert where.sync() == id(inner) != id(outer)
            with ThreadPoolExecutor(1) as threads:  # it copies no context
                assert threads.submit(where.sync).result() == id(outer)
                assert threads.submit(copy_context().run, where.sync).result() == id(inner)
        assert where.sync() == id(outer)
        assert add.sync(1, 2) == 3
        assert len(background()) == 1
    assert get_router(namespace)._connected == {}


def test_threads_that_connect_on_their_own_do_not_mix(namespace: str) -> None:
    where = locating(namespace)
    together = threading.Barrier(4)

    def view(number: int) -> list[bool]:
        together.wait(30)
        found = []
        for _ in range(number + 1):
            with atasks.connect_sync(namespace=namespace) as transport:
                found += [where.sync() == id(transport) for _ in range(10)]
        return found

    with ThreadPoolExecutor(4) as views:
        found = list(views.map(view, range(4)))
    assert [len(each) for each in found] == [10, 20, 30, 40]
    assert all(map(all, found))
    assert get_router(namespace)._connected == {}


def test_a_connection_of_its_own_inside_an_atask_in_a_thread(namespace: str) -> None:
    where = locating(namespace)

    @atask(namespace=namespace, executor="thread")
    def work() -> tuple[int, bool, int]:
        served = where.sync()
        with atasks.connect_sync(namespace=namespace) as own:
            return served, where.sync() == id(own), where.sync()

    with atasks.connect_sync(namespace=namespace) as outer:
        served, is_own, own = work.sync()
        assert (served, is_own) == (id(outer), True)
        assert own != served


def test_a_connection_of_its_own_inside_an_atask_in_a_process(script: Callable[..., str]) -> None:
    output = script(
        """
        import os
        import atasks
        from atasks import atask

        @atask(executor="process")
        def here():
            with atasks.connect_sync("loopback:"):
                return there.sync() == os.getpid()

        @atask
        async def there():
            return os.getpid()

        if __name__ == "__main__":
            with atasks.connect_sync("loopback:"):
                print(here.sync(), there.sync() == os.getpid())
        """
    )
    assert output == "True True"


def test_a_connection_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(InvalidURL), atasks.connect_sync("ampq://localhost/"):
        pass
    assert background() == []


def test_carried_variables_travel(namespace: str) -> None:
    tenant = atasks.carry(ContextVar[str](f"tenant-{namespace}"))

    @atask(namespace=namespace)
    async def look() -> str:
        return tenant.get()

    tenant.set("acme")
    with atasks.connect_sync(namespace=namespace):
        assert look.sync() == "acme"


def test_the_end_of_the_block_ends_calls_of_other_threads(namespace: str) -> None:
    began = threading.Event()

    @atask(namespace=namespace)
    async def nap() -> None:
        began.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as views:
        with atasks.connect_sync(namespace=namespace):
            view = views.submit(nap.sync)
            assert began.wait(PATIENCE)
        with pytest.raises(CallConnectionLost):
            view.result(PATIENCE)
    assert background() == []


async def test_a_thread_that_a_coroutine_starts_calls_over_the_workers_connection(
    add: ATask[[int, int], int], namespace: str
) -> None:
    @atask(namespace=namespace)
    async def child() -> tuple[str | None, int]:
        return current_call().parent_id, worker.parked

    @atask(namespace=namespace)
    async def parent() -> Any:
        return current_call().id, await asyncio.to_thread(child.sync)

    async with serve(namespace, concurrency=1) as worker:
        call_id, (parent_id, parked) = await soon(parent())
        await until(lambda: idle(worker))
    assert (parent_id, parked) == (call_id, 1)


def test_exceptions_are_not_kept_alive(namespace: str) -> None:
    class Thing:
        pass

    @atask(namespace=namespace)
    async def fail(thing: Thing) -> None:
        raise ValueError

    def view() -> weakref.ref[Thing]:
        thing = Thing()
        with pytest.raises(ValueError):  # noqa: PT011
            fail.sync(thing)
        return weakref.ref(thing)

    with atasks.connect_sync(namespace=namespace):
        gc.disable()
        try:
            assert view()() is None
        finally:
            gc.enable()


def test_an_interrupt_cancels_the_call(script: Callable[..., str]) -> None:
    text = """
        import asyncio, os, signal, threading
        import atasks

        cancelled = threading.Event()

        @atasks.atask
        async def nap():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        with atasks.connect_sync("loopback:"):
            try:
                nap.sync()
            except KeyboardInterrupt:
                print("interrupted", cancelled.wait(30))
    """
    assert script(text) == "interrupted True"


def test_a_forked_process_needs_a_connection_of_its_own(script: Callable[..., str]) -> None:
    text = """
        import os, threading
        import atasks

        @atasks.atask
        async def add(a: int, b: int) -> int:
            return a + b

        def child() -> None:
            try:
                add.sync(1, 2)
            except atasks.NotConnected as error:
                print(error)
            with atasks.connect_sync("loopback:"):
                print("child", add.sync(1, 2), flush=True)

        with atasks.connect_sync("loopback:"):
            add.sync(1, 2)
            pid = os.fork()
            if not pid:
                child()
            else:
                assert os.waitpid(pid, 0)[1] == 0
                print("parent", add.sync(3, 4))
        if pid:
            print([thread.name for thread in threading.enumerate()])
    """
    refused, child, parent, threads = script(text, "-W", "ignore::DeprecationWarning").splitlines()
    assert refused.startswith("this process was forked from one that had connected; connections do not survive")
    assert refused.endswith('enter `with atasks.connect_sync("amqp://localhost/")` or another URL in the child')
    assert (child, parent, threads) == ("child 3", "parent 7", "['MainThread']")
