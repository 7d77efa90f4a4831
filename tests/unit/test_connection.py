"""`connect`: which transport an await finds, in which process, thread and event loop."""

# Private attributes: `Router._transport` says which transport code finds, `_connected` which are remembered;
# `_ignored` is what was logged once.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

import atasks
from atasks.definitions import ATask
from atasks.tasks import atask
from atasks.transport.loopback import LoopbackTransport

# -- connect


async def test_connect(add: ATask[..., int], namespace: str) -> None:
    async with atasks.connect("loopback:", namespace=namespace) as transport:
        assert isinstance(transport, LoopbackTransport)
        assert await add(1, 2) == 3


async def test_the_default_url_is_the_loopback(add: ATask[..., int], namespace: str) -> None:
    async with atasks.connect(namespace=namespace):
        assert await add(1) == 11


async def test_without_a_connection(add: ATask[..., int], namespace: str) -> None:
    with pytest.raises(atasks.NotConnected) as caught:
        await add(1)
    assert str(caught.value) == (
        f"namespace {namespace!r} has no transport in this event loop: "
        f'enter `async with atasks.connect("amqp://localhost/", namespace={namespace!r})`, or another URL, first'
    )
    async with atasks.connect(namespace=namespace):
        pass
    with pytest.raises(atasks.NotConnected, match=r"atasks\.connect"):
        await add(1)


async def test_a_nested_connect_shadows_and_restores(add: ATask[..., int], namespace: str) -> None:
    used: list[Any] = []
    router = atasks.get_router(namespace)

    async def note() -> None:
        used.append(router._transport(None))
        await add(1)

    async with atasks.connect(namespace=namespace) as outer:
        await note()
        async with atasks.connect(namespace=namespace) as inner:
            await note()
            async with atasks.serve("loopback:", namespace=namespace) as worker:
                await note()
            await note()
        await note()
        with pytest.raises(ValueError, match="an error"):
            async with atasks.connect(namespace=namespace):
                raise ValueError("an error")
        await note()
    assert used == [outer, inner, worker.transport, inner, outer, outer]
    assert len({outer, inner, worker.transport}) == 3


async def test_pending_awaits_end_with_the_block(namespace: str) -> None:
    inside = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        inside.set()
        await asyncio.Event().wait()

    async with atasks.connect(namespace=namespace):
        pending = [asyncio.create_task(forever()) for _ in range(150)]
        await inside.wait()
    for task in pending:
        with pytest.raises(atasks.CallConnectionLost, match=r"outcome of .* cannot be known"):
            await task


def test_each_event_loop_has_its_own(add: ATask[..., int], namespace: str) -> None:
    connected, done = threading.Event(), threading.Event()
    results: list[Any] = []

    async def other() -> None:
        try:
            await add(1)
        except atasks.NotConnected:
            results.append("not connected")
        async with atasks.connect(namespace=namespace) as transport:
            results.extend([await add(1), transport])

    async def main() -> None:
        async with atasks.connect(namespace=namespace) as transport:
            connected.set()
            await asyncio.to_thread(done.wait, 30)
            results.extend([await add(2), transport])

    def in_thread() -> None:
        connected.wait(30)
        asyncio.run(other())
        done.set()

    thread = threading.Thread(target=in_thread)
    thread.start()
    asyncio.run(main())
    thread.join()
    assert [*results[:2], results[3]] == ["not connected", 11, 12]
    assert results[2] is not results[4]
    assert not atasks.get_router(namespace)._connected, "loops that are gone are forgotten"


async def test_a_thread_with_a_loop_of_its_own_inside_a_call(add: ATask[..., int], namespace: str) -> None:
    @atask(namespace=namespace)
    async def in_thread() -> str:
        def run() -> str:
            try:
                return str(asyncio.run(_await(add(1))))
            except atasks.NotConnected:
                return "not connected"

        return await asyncio.to_thread(run)

    async with atasks.connect(namespace=namespace):
        assert await in_thread() == "not connected"


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def test_inside_a_served_call_the_serving_transport_is_used(namespace: str) -> None:
    seen: list[Any] = []
    inside, go_on = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace)
    async def inner() -> None:
        worker = serving_worker()
        seen.append(worker.transport)

    @atask(namespace=namespace)
    async def outer() -> None:
        inside.set()
        await go_on.wait()
        await inner()
        await asyncio.create_task(inner())

    async with atasks.connect(namespace=namespace) as first:
        call = asyncio.create_task(outer())
        await inside.wait()
        async with atasks.connect(namespace=namespace) as second:
            go_on.set()
            await call
            await inner()
    assert seen == [first, first, second]


def serving_worker() -> atasks.Worker:
    from atasks.current import serving

    run = serving.get()
    assert run is not None
    return run.worker


URLS = ["loopback:", "local:", "unix:///run/none.sock", "amqp://localhost/"]


@pytest.mark.parametrize("url", URLS)
async def test_an_option_that_no_transport_takes(namespace: str, url: str) -> None:
    for enter in (atasks.connect, atasks.serve):
        with pytest.raises(TypeError, match="unknown option 'colour'"):
            async with enter(url, namespace=namespace, colour="red"):  # type: ignore[operator]
                pass
        with pytest.raises(TypeError, match=r"unknown option 'concurency'; did you mean concurrency\?"):
            async with enter(url, namespace=namespace, concurency=3):  # type: ignore[operator]
                pass
    assert atasks.get_transport(namespace) is None


async def test_options_of_a_broker_have_no_meaning_in_loopback(
    add: ATask[..., int], namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atasks.schemes._ignored", set())
    caplog.set_level("DEBUG", "atasks")
    for _ in range(2):
        for enter in (atasks.connect, atasks.serve):
            async with enter(
                "loopback:", namespace=namespace, prefix="shop", queue_type="quorum", timeout=5.0, max_priority=3
            ):
                assert await add(1, 2) == 3
    ignored = [record for record in caplog.records if "ignores the option" in record.message]
    assert sorted(record.args[1] for record in ignored if isinstance(record.args, tuple)) == [
        "max_priority",
        "prefix",
        "queue_type",
        "timeout",
    ]
    assert {record.levelname for record in ignored} == {"DEBUG"}


async def test_loopback_runs_as_many_calls_at_once_as_it_is_told(namespace: str) -> None:
    running = most = 0

    @atask(namespace=namespace)
    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with atasks.connect("loopback:", namespace=namespace, concurrency=2):
        await asyncio.gather(*(count() for _ in range(6)))
    assert most == 2


@pytest.mark.parametrize("option", ["workers", "concurrency", "hub", "modules"])
async def test_a_connection_to_a_broker_starts_no_workers(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option}= is for worker processes of this program"):
        async with atasks.connect("amqp://localhost/", **{option: 2}):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("option", ["queues", "lifespan"])
async def test_options_of_a_worker_are_not_for_a_client(option: str) -> None:
    with pytest.raises(TypeError, match=rf"{option}= is for atasks\.serve"):
        async with atasks.connect("loopback:", **{option: None}):  # type: ignore[arg-type]
            pass


async def test_connect_leaves_the_registered_transport_alone(add: ATask[..., int], namespace: str) -> None:
    mine = LoopbackTransport(namespace)
    async with atasks.connect(namespace=namespace) as transport:
        assert transport is not mine
        assert atasks.get_transport(namespace) is mine
    assert atasks.get_transport(namespace) is mine


# -- programs of their own


def test_a_script_and_its_exceptions(script: Callable[..., str]) -> None:
    """A class that `__main__` defines is one class on both sides, and is not imported twice."""
    output = script(
        """
        import asyncio, pickle, sys
        import atasks
        from atasks import atask

        print("imported as", __name__)

        class Refused(Exception):
            def __init__(self, code, *, detail):
                super().__init__(code)
                self.detail = detail

        class Point:
            def __init__(self, x):
                self.x = x

        @atask
        async def refuse(point):
            assert type(point) is Point
            raise Refused(point.x, detail=Point(2))

        async def main():
            async with atasks.connect("loopback:"):
                try:
                    await refuse(Point(1))
                except Refused as error:
                    print(type(error) is Refused, error.args, error.detail.x, type(error.detail) is Point)
                    print(type(error.__cause__).__name__, error.__notes__[0].split(",")[0])

        if __name__ == "__main__":
            print(refuse.name, sys.modules["script"] is sys.modules["__main__"])
            assert pickle.loads(pickle.dumps(refuse)) is refuse
            asyncio.run(main())
        """
    )
    assert output.splitlines() == [
        "imported as __main__",
        "script.refuse True",
        "True (1,) 2 True",
        "RemoteTraceback atasks: task 'script.refuse'",
    ]


QUIET_FORK = ("-W", "ignore::DeprecationWarning")
"""Python 3.12 on warns of forking while a thread runs: the watchdog's, here."""

FORKING = """
    import asyncio, os
    import atasks
    from atasks import atask

    @atask
    async def whoami():
        return os.getpid()

    async def child():
        try:
            await whoami()
        except atasks.NotConnected as error:
            print(error, flush=True)
        async with atasks.connect("loopback:"):
            print(await whoami() == os.getpid(), flush=True)
"""


def test_a_forked_child_that_goes_on_with_the_event_loop(script: Callable[..., str]) -> None:
    output = script(
        dedent(FORKING)
        + dedent(
            """
            with asyncio.Runner() as runner:
                connection = atasks.connect("loopback:")
                runner.run(connection.__aenter__())
                runner.run(whoami())
                pid = os.fork()
                if pid == 0:
                    runner.run(child())
                    os._exit(0)
                print("child:", os.waitpid(pid, 0)[1], flush=True)
                print(runner.run(whoami()) == os.getpid(), flush=True)
                runner.run(connection.__aexit__(None, None, None))
            """
        ),
        *QUIET_FORK,
    )
    refused, *rest = output.splitlines()
    assert refused == (
        "this process was forked from one that had connected; connections do not survive a fork: "
        "enter atasks.connect(url) in the child"
    )
    assert rest == ["True", "child: 0", "True"]


def test_a_forked_child_with_an_event_loop_of_its_own(script: Callable[..., str]) -> None:
    output = script(
        dedent(FORKING)
        + dedent(
            """
            async def main():
                async with atasks.connect("loopback:"):
                    await whoami()
                    pid = os.fork()
                    if pid == 0:
                        asyncio.run(child())
                        os._exit(0)
                    print("child:", os.waitpid(pid, 0)[1], flush=True)
                    print(await whoami() == os.getpid(), flush=True)

            asyncio.run(main())
            """
        ),
        *QUIET_FORK,
    )
    refused, *rest = output.splitlines()
    assert refused.startswith("namespace 'default' has no transport in this event loop: enter")
    assert rest == ["True", "child: 0", "True"]


def test_forked_children_make_call_ids_of_their_own(script: Callable[..., str]) -> None:
    output = script(
        """
        import os
        from atasks.current import new_call_id

        read, write = os.pipe()
        new_call_id()
        for _ in range(3):
            if os.fork() == 0:
                os.write(write, new_call_id().encode() + b" ")
                os._exit(0)
        for _ in range(3):
            os.wait()
        os.close(write)
        ids = [new_call_id(), *os.read(read, 10_000).decode().split()]
        print(len(ids), len(set(ids)))
        """
    )
    assert output == "4 4"


def test_a_program_that_ends_in_the_middle_of_calls_is_quiet(script: Callable[..., str]) -> None:
    """asyncio.run cancels everything; nothing hangs, and nothing is said of tasks or threads left behind."""
    output = script(
        """
        import asyncio
        import atasks
        from atasks import atask

        @atask
        async def tree(n):
            await asyncio.sleep(0)
            await asyncio.gather(tree(n + 1), tree(n + 1), return_exceptions=n > 3)

        async def main():
            async with atasks.serve("loopback:", concurrency=2, max_parked=200, grace=0):
                call = asyncio.create_task(tree(0))
                for _ in range(50):
                    await asyncio.sleep(0)
                print("leaving")
            print(type((await asyncio.gather(call, return_exceptions=True))[0]).__name__)

        asyncio.run(main())
        """
    )
    assert output.splitlines() == ["leaving", "CallConnectionLost"]
