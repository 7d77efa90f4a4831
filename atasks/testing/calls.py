"""Cases for `current_call()`, and for the context that travels with a call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from atasks import NotSupported, carry, current_call
from atasks.current import carried
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["CallCases"]


class CallCases(Cases):
    """`current_call()`, context variables, and options of calls."""

    @pytest.fixture
    def carried_variable(self, site: Site) -> Iterator[ContextVar[str]]:
        """A context variable that travels, until the end of the case."""
        variable: ContextVar[str] = ContextVar(f"variable of {site.namespace}")
        yield carry(variable)
        del carried[variable.name]

    async def test_current_call(self, site: Site) -> None:
        state = object()

        def known() -> dict[str, Any]:
            call = current_call()
            assert call.state is state
            return {
                "id": call.id,
                "attempt": call.attempt,
                "parent": call.parent_id,
                "root": call.root_id,
                "deadline": call.deadline,
            }

        @site.atask
        async def inner() -> list[dict[str, Any]]:
            return [known()]

        @site.atask
        async def middle() -> list[dict[str, Any]]:
            return [known(), *await inner()]

        @site.atask
        async def outer() -> list[dict[str, Any]]:
            return [known(), *await middle()]

        async with site.open(state=state):
            first, second, third = await soon(outer())
            assert len({first["id"], second["id"], third["id"]}) == 3
            assert [item["attempt"] for item in (first, second, third)] == [1, 1, 1]
            assert [item["parent"] for item in (first, second, third)] == [None, first["id"], second["id"]]
            assert {item["root"] for item in (first, second, third)} == {first["id"]}
            assert {item["deadline"] for item in (first, second, third)} == {None}
            (timed,) = await soon(inner.options(timeout=3600)())
            assert timed["deadline"] > asyncio.get_running_loop().time()
            assert timed["id"] != third["id"]

    async def test_no_current_call_outside(self, site: Site) -> None:
        @site.atask
        async def nothing() -> None:
            pass

        async with site.open(state=1):
            await soon(nothing())
            call = current_call()
            assert (call.id, call.attempt, call.deadline, call.parent_id, call.root_id, call.state) == (None,) * 6

    async def test_context_variables_stay_behind(self, site: Site) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="not set")

        @site.atask
        async def read() -> str:
            return variable.get()

        @site.atask
        async def write() -> None:
            variable.set("by the atask")

        async with site.open():
            variable.set("by the caller")
            assert await soon(read()) == "not set"
            await soon(write())
            assert variable.get() == "by the caller"

    async def test_carried_variables_travel(self, site: Site, carried_variable: ContextVar[str]) -> None:
        @site.atask
        async def read() -> str:
            return carried_variable.get("not set")

        @site.atask
        async def pass_on(change: str | None) -> str:
            if change is not None:
                carried_variable.set(change)
            return await read()

        async with site.open():
            assert await soon(read()) == "not set"
            carried_variable.set("here")
            assert await soon(read()) == "here"
            assert await soon(pass_on(None)) == "here"
            assert await soon(pass_on("there")) == "there"
            assert carried_variable.get() == "here"

    async def test_at_most_once(self, site: Site) -> None:
        ran = []

        @site.atask(delivery="at_most_once")
        async def run(n: int) -> int:
            ran.append(n)
            return n

        async with site.open():
            if "at_most_once" in site.caller.supports:
                assert await soon(run(1)) == 1
                assert ran == [1]
            else:
                with pytest.raises(NotSupported, match="at-most-once"):
                    await soon(run(1))
                assert ran == []

    async def test_call_by_name(self, site: Site) -> None:
        @site.atask(name="a name of its own")
        async def add(a: int, *, name: int) -> int:
            return a + name

        async with site.open():
            assert await soon(site.router.send_request("a name of its own", 1, name=2)) == 3

    async def test_caller_in_a_task_group(self, site: Site) -> None:
        @site.atask
        async def double(n: int) -> int:
            return 2 * n

        async with site.open():
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                tasks = [group.create_task(double(n)) for n in range(5)]
            assert [task.result() for task in tasks] == [0, 2, 4, 6, 8]

    async def test_long_timeouts_leave_no_timers(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        call_at = loop.call_at

        def recording(when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            timer = call_at(when, *args, **kwargs)
            timers.append(timer)
            return timer

        @site.atask(timeout=100_000)
        async def echo(n: int) -> int:
            return n

        async with site.open():
            monkeypatch.setattr(loop, "call_at", recording)
            await soon(asyncio.gather(*(echo(n) for n in range(100))))
            await site.check_quiet()
            long = [timer for timer in timers if timer.when() > loop.time() + 10_000]
            assert len(long) >= 100
            assert [timer for timer in long if not timer.cancelled()] == []
