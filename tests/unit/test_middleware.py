"""`atasks.use` and what it costs; middlewares around processes and submitted runs."""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import atasks
from atasks import (
    ATask,
    CallError,
    Invocation,
    Middleware,
    RemoteError,
    Retry,
    atask,
    connect,
    current_call,
    schedule,
    unschedule,
    use,
)
from atasks.namespaces import namespace_item, namespaces
from atasks.pipeline import map
from atasks.testing import soon, until
from tests.unit import middlewares
from tests.unit.middlewares import NAMESPACE, Around, Refused, Unpicklable, describe, double

Proceed = Callable[[], Awaitable[Any]]


@pytest.fixture
def used() -> Iterator[None]:
    """Middlewares of the module's namespace are forgotten after the test."""
    item = namespace_item(NAMESPACE)
    yield
    namespaces.register(NAMESPACE, around_calls=None, around_runs=None)
    assert item.around_calls is None


@pytest.mark.usefixtures("used")
async def test_a_process_runs_inside_of_copies_of_the_middlewares() -> None:
    use(Around(), NAMESPACE)
    async with connect("loopback:", namespace=NAMESPACE, processes=1):
        name = f"{middlewares.__name__}.describe"
        who, called, queue, count, body, inside, around, known = await soon(describe("body"))
        assert (who, called, queue, count, known) == ("somebody", name, "default", 1, True)
        assert inside == f"body by somebody, {body}"
        assert body == around, "the middleware and the function run in one process"
        assert (await soon(describe("again")))[3] == 3, "the second proceed() ran the function again"
        for what, message in (("refuse", name), ("raise", "body")):
            with pytest.raises(Refused, match=message):
                await soon(describe(what))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await soon(describe("stop"))
        with pytest.raises(RemoteError, match="SystemExit"):
            await soon(describe("exit"))
        assert (await soon(describe("body")))[4] == body, "none of that cost the process"


@pytest.mark.usefixtures("used")
async def test_a_middleware_that_cannot_be_pickled_is_named() -> None:
    use(Unpicklable(), NAMESPACE)
    async with connect("loopback:", namespace=NAMESPACE, processes=1):
        with pytest.raises(CallError, match="a middleware cannot be pickled"):
            await soon(describe("body"))


@pytest.mark.usefixtures("used")
async def test_ticks_with_a_retry_pass_the_middlewares() -> None:
    """The middlewares at the worker that keeps the times see the atask and its arguments, and may change them."""
    calls: list[tuple[Any, ...]] = []
    ran: list[tuple[int, int]] = []

    class Raising(Middleware):
        async def call(self, call: Invocation, proceed: Proceed) -> Any:
            if call.submitted:
                calls.append((call.name, call.args, dict(call.kwargs)))
                call.args = (2, *call.args[1:])
            return await proceed()

    @atask(name="middlewares-tick", namespace=NAMESPACE)
    async def tick(number: int, *, more: str) -> None:
        ran.append((number, current_call().try_))
        raise KeyError(more)

    use(Raising(), NAMESPACE)
    async with connect("loopback:", namespace=NAMESPACE):
        retried = tick.options(retry=Retry(on=(KeyError,), attempts=2, wait=0.01, jitter=0.0))
        await soon(schedule("tick", retried, [1], {"more": "m"}, every=0.1))
        await until(lambda: len(ran) >= 4, "two ticks were tried twice")
        await soon(unschedule("tick", namespace=NAMESPACE))
    assert all(call == ("middlewares-tick", (1,), {"more": "m"}) for call in calls)
    assert len(calls) >= 2
    assert set(ran) == {(2, 1), (2, 2)}


@pytest.mark.usefixtures("used")
async def test_submitted_runs_and_their_stages_pass_the_middlewares() -> None:
    calls: list[tuple[str, str, bool]] = []

    class Noting(Middleware):
        async def call(self, call: Invocation, proceed: Proceed) -> Any:
            calls.append(("call", call.name, call.submitted))
            call.headers["from"] = call.id
            return await proceed()

        async def run(self, call: Invocation, proceed: Proceed) -> Any:
            calls.append(("run", call.name, call.id.startswith(call.headers["from"])))
            return await proceed()

    use(Noting(), NAMESPACE)
    async with connect("loopback:", namespace=NAMESPACE):
        handle = await soon((map(double)).submit(21))
        assert await soon(handle) == 42
    run, stage = "atasks.pipeline.run", double.name
    assert calls == [("call", run, True), ("run", run, True), ("call", stage, False), ("run", stage, True)]


async def test_use_wants_an_instance(namespace: str) -> None:
    wrong: list[Any] = [Around, Around.call, None]
    for middleware in wrong:
        with pytest.raises(TypeError, match="instance of a subclass of"):
            use(middleware, namespace)
    with pytest.raises(ValueError, match="namespace"):
        use(Around(), "not a namespace")


async def test_what_is_not_overridden_is_not_around(namespace: str, add: ATask[..., int]) -> None:
    class RunOnly(Middleware):
        async def run(self, call: Invocation, proceed: Proceed) -> Any:
            return await proceed() + 1

    use(RunOnly(), namespace)
    use(Middleware(), namespace)
    item = namespace_item(namespace)
    assert item.around_calls is None
    assert len(item.around_runs.middlewares) == 1
    async with connect("loopback:", namespace=namespace):
        assert await soon(add(1, 2)) == 4


async def test_middlewares_of_other_namespaces_cost_no_function_call(namespace: str, add: ATask[..., int]) -> None:
    async with connect("loopback:", namespace=namespace):
        await soon(add(1, 2))
        profile = cProfile.Profile()
        with profile:
            await add(1, 2)
        files = {file for file, _, _ in pstats.Stats(profile).stats}  # type: ignore[attr-defined]
        assert any("router.py" in file for file in files)
        assert not any("atasks/middleware.py" in file for file in files)


async def test_a_router_made_later_keeps_the_middlewares(namespace: str, add: ATask[..., int]) -> None:
    class Doubling(Middleware):
        async def call(self, call: Invocation, proceed: Proceed) -> Any:
            return 2 * await proceed()

    class Tripling(atasks.Router):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            return 3 * await super().send_request(name, *args, **kwargs)

    use(Doubling(), namespace)
    Tripling(namespace)
    async with connect("loopback:", namespace=namespace):
        assert await soon(add(1, 2)) == 18


async def test_a_call_that_is_cancelled_cancels_its_middlewares(namespace: str, add: ATask[..., int]) -> None:
    class Waiting(Middleware):
        cancelled = False

        async def call(self, call: Invocation, proceed: Proceed) -> Any:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise

    began = asyncio.Event()
    waiting = Waiting()
    use(waiting, namespace)
    async with connect("loopback:", namespace=namespace):
        task = asyncio.create_task(add(1, 2))
        await soon(began.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert waiting.cancelled


async def test_a_middleware_that_takes_the_time_of_a_call_leaves_none(
    namespace: str, add: ATask[..., int]
) -> None:
    class Slow(Middleware):
        async def call(self, call: Invocation, proceed: Proceed) -> Any:
            loop = asyncio.get_running_loop()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # it insists
                assert loop.time() > 0
            return await proceed()

    use(Slow(), namespace)
    async with connect("loopback:", namespace=namespace):
        with pytest.raises(atasks.CallTimeout, match=r"no time is left for add|add did not finish within 0\.05 s"):
            await soon(add.options(timeout=0.05)(1, 2))
