"""`serve`: a worker in a block, its lifespan, and in what order things begin and end."""

# Private attributes: `Router._connected`: the moment between connecting and serving is seen nowhere else.

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import atasks
from atasks import schemes
from atasks.definitions import ATask
from atasks.tasks import atask
from atasks.transport.loopback import LoopbackTransport
from tests.busy import calm


async def test_serve(add: ATask[..., int], namespace: str) -> None:
    async with atasks.serve("loopback:", namespace=namespace, concurrency=3, max_parked=7) as worker:
        assert isinstance(worker, atasks.Worker)
        assert (worker.concurrency, worker.max_parked, worker.tasks) == (3, 7, ["add"])
        assert await add(1, 2) == 3
    await worker.wait()


class Steps:
    def __init__(self) -> None:
        self.steps: list[str] = []

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[dict[str, str]]:
        self.steps.append("enter")
        try:
            yield {"pool": "of connections"}
        finally:
            self.steps.append("exit")


@pytest.mark.parametrize("kind", ["object", "factory", "class"])
async def test_lifespan(namespace: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()
    inside = asyncio.Event()

    @atask(namespace=namespace)
    async def look() -> Any:
        steps.steps.append("call")
        inside.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        steps.steps.append("call ends")
        return atasks.current_call().state

    class Manager(AbstractAsyncContextManager[Any]):
        def __init__(self) -> None:
            self.inner = steps.lifespan()

        async def __aenter__(self) -> Any:
            return await self.inner.__aenter__()

        async def __aexit__(self, *error: object) -> None:
            await self.inner.__aexit__(*error)  # type: ignore[arg-type]

    async def note(what: str, method: Callable[[Any], Any], transport: Any) -> None:
        steps.steps.append(what)
        await method(transport)

    for name in ("connect", "disconnect"):
        original = getattr(LoopbackTransport, name)
        monkeypatch.setattr(
            LoopbackTransport, name, lambda self, name=name, original=original: note(name, original, self)
        )

    lifespan: Any = {"object": steps.lifespan(), "factory": steps.lifespan, "class": Manager}[kind]
    async with atasks.serve("loopback:", namespace=namespace, lifespan=lifespan):
        call = asyncio.create_task(look())
        await inside.wait()
    assert await call == {"pool": "of connections"}
    assert steps.steps == ["connect", "enter", "call", "call ends", "exit", "disconnect"]


async def test_nested_calls_have_the_state_too(namespace: str) -> None:
    state = object()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[object]:
        yield state

    @atask(namespace=namespace)
    async def inner() -> bool:
        return atasks.current_call().state is state

    @atask(namespace=namespace)
    async def outer() -> list[bool]:
        here = atasks.current_call().state is state
        return [here, await inner(), await asyncio.create_task(asyncio.wait_for(inner(), 10))]

    async with atasks.serve("loopback:", namespace=namespace, lifespan=lifespan):
        assert await outer() == [True, True, True]
        assert atasks.current_call().state is None
    async with atasks.connect(namespace=namespace):
        assert await outer() == [False, False, False]


async def test_a_lifespan_that_fails_serves_nothing(add: ATask[..., int], namespace: str) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with pytest.raises(OSError, match="no database"):
        async with atasks.serve("loopback:", namespace=namespace, lifespan=lifespan):
            pass
    with pytest.raises(atasks.NotConnected):
        await add(1)


async def test_a_lifespan_is_left_when_the_worker_cannot_be_made(namespace: str) -> None:
    steps = Steps()
    with pytest.raises(ValueError, match="concurrency"):
        async with atasks.serve("loopback:", namespace=namespace, concurrency=0, lifespan=steps.lifespan):
            pass
    assert steps.steps == ["enter", "exit"]


async def test_leaving_serve_lets_calls_finish_within_the_grace(namespace: str) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace)
    async def work(n: int) -> int:
        inside.set()
        await go_on.wait()
        return n

    async with atasks.serve("loopback:", namespace=namespace, grace=20):
        finishing = asyncio.create_task(work(1))
        await inside.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
    assert await finishing == 1


async def test_leaving_serve_cuts_off_what_takes_longer(namespace: str) -> None:
    inside = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        inside.set()
        await asyncio.Event().wait()

    async with atasks.serve("loopback:", namespace=namespace, grace=0.01):
        pending = asyncio.create_task(forever())
        await inside.wait()
    with pytest.raises(atasks.CallConnectionLost):
        await pending


async def test_an_error_in_the_block_is_the_users(namespace: str) -> None:
    for enter in (atasks.connect, atasks.serve):
        with pytest.raises(KeyError, match="mine"):
            async with enter("loopback:", namespace=namespace):
                raise KeyError("mine")


async def test_cancelling_the_block(add: ATask[..., int], namespace: str) -> None:
    entered = asyncio.Event()

    async def block() -> None:
        async with atasks.serve("loopback:", namespace=namespace):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(atasks.NotConnected):
        await add(1)


class SlowToServe(LoopbackTransport):
    """Takes calls from its first queue before its second one is ready, as a broker may make a worker do."""

    go_on = asyncio.Event()

    async def serve(self, worker: atasks.Worker, queues: Any = None) -> None:
        await super().serve(worker, queues)
        await self.go_on.wait()


async def test_calls_that_came_before_a_start_was_cancelled_are_drained(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(schemes.TRANSPORTS, "loopback", f"{__name__}:SlowToServe")
    SlowToServe.go_on = asyncio.Event()
    running, finish = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace)
    async def gated() -> str:
        running.set()
        await finish.wait()
        return "through"

    async def server() -> None:
        async with atasks.serve("loopback:", namespace=namespace):
            raise AssertionError("it never serves")

    serving = asyncio.create_task(server())
    while not atasks.get_router(namespace)._connected:
        await asyncio.sleep(0)
    call = asyncio.create_task(gated())
    await running.wait()
    serving.cancel()
    await asyncio.sleep(0)
    SlowToServe.go_on.set()
    finish.set()
    assert await call == "through"
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_start_that_has_no_calls_is_cancelled_at_once(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(schemes.TRANSPORTS, "loopback", f"{__name__}:SlowToServe")
    SlowToServe.go_on = asyncio.Event()
    serving = asyncio.create_task(atasks.serve("loopback:", namespace=namespace).__aenter__())
    while not atasks.get_router(namespace)._connected:
        await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not SlowToServe.go_on.is_set()


async def test_queues_that_no_atask_uses(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    @atask(namespace=namespace, queue="gpu")
    async def train() -> None:
        pass

    @atask(namespace=namespace)
    async def plain() -> None:
        pass

    async with atasks.serve("loopback:", namespace=namespace, queues=["gpu", "nosuch", "default"], grace=0):
        await train()
    (warning,) = [record.getMessage() for record in calm(caplog.records) if record.levelno >= logging.WARNING]
    assert warning.startswith("no atask that is loaded uses queue 'nosuch' (they use 'default', 'gpu'): ")


async def test_a_worker_drains_in_a_scope_that_is_cancelled_again_and_again(namespace: str) -> None:
    begun = asyncio.Event()

    @atask(namespace=namespace)
    async def work() -> str:
        begun.set()
        await asyncio.sleep(0.2)
        return "done"

    with anyio.CancelScope() as scope:
        async with atasks.serve("loopback:", namespace=namespace, grace=5) as worker:
            call = asyncio.create_task(work())
            await begun.wait()
            scope.cancel()
            await asyncio.Event().wait()
    assert worker.held == 0
    assert await call == "done"


@pytest.mark.parametrize("transport", ["loopback:", "unix:"])
def test_what_runs_at_the_end_of_the_event_loop_does_not_begin_again(
    transport: str, namespace: str, tmp_path: Path
) -> None:
    """In a block that is not left, a worker gives back what is cancelled with the loop, and then had it again."""
    steps: list[str] = []
    left: list[object] = []

    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(1000):
                yield number
        finally:
            steps.append("stream")

    @atask(namespace=namespace)
    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            steps.append("submitted")

    async def main() -> None:
        url = transport if transport == "loopback:" else f"unix://{tmp_path}/x.sock"
        serving = atasks.serve(url, namespace=namespace)
        await serving.__aenter__()
        stream = numbers()
        async for number in stream:
            if number == 5:
                break
        left.extend((serving, stream, await work.submit()))
        await started.wait()

    started = asyncio.Event()
    asyncio.run(main())
    assert sorted(steps) == ["stream", "submitted"]
