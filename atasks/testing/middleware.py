"""Middlewares: users' code around calls, at both sides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from atasks import CallTimeout, Invocation, Middleware, current_call, use
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon
from atasks.testing.streams import moves_streams, read

__all__ = ["MiddlewareCases"]

Proceed = Callable[[], Awaitable[Any]]


class Noting(Middleware):
    """Notes what passes, at both sides, and stamps the headers."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes
        self.calls: list[Invocation] = []
        self.runs: list[Invocation] = []

    async def call(self, call: Invocation, proceed: Proceed) -> Any:
        self.calls.append(call)
        call.headers[self.name] = f"by {self.name}: ä"
        return await self._around("call", proceed)

    async def run(self, call: Invocation, proceed: Proceed) -> Any:
        self.runs.append(call)
        return await self._around("run", proceed)

    async def _around(self, what: str, proceed: Proceed) -> Any:
        self.notes.append(f"{self.name} {what}")
        try:
            return await proceed()
        finally:
            self.notes.append(f"{self.name} {what} over")


class Refused(Exception):
    """An exception of a middleware."""


async def nothing() -> AsyncIterator[None]:
    """An iterator without items."""
    for _ in ():
        yield


class MiddlewareCases(Cases):
    """Middlewares see every call of their namespace, at both sides, and may change it."""

    async def test_middlewares_are_around_calls_and_runs_in_order(self, site: Site) -> None:
        notes: list[str] = []
        outer, inner = Noting("outer", notes), Noting("inner", notes)

        @site.atask
        async def where(text: str, *, other: int) -> tuple[Any, ...]:
            notes.append(text)
            call = current_call()
            assert call.key == call.id
            return call.id, call.root_id, call.parent_id, call.attempt, call.name, call.queue, other

        use(outer, site.namespace)
        use(inner, site.namespace)
        async with site.open():
            known = await soon(where("body", other=3))
            around = ["outer call", "inner call", "outer run", "inner run", "body"]
            assert notes == [*around, *(f"{note} over" for note in reversed(around[:-1]))]
            for seen in (outer.calls[0], inner.calls[0], outer.runs[0], inner.runs[0]):
                assert (seen.id, seen.root_id, seen.parent_id, seen.attempt, seen.name, seen.queue, 3) == known
                assert (seen.task, seen.args, seen.kwargs) == (where, ("body",), {"other": 3})
                assert seen.headers == {"outer": "by outer: ä", "inner": "by inner: ä"}
                assert "body" not in repr(seen)

    async def test_nested_calls_know_their_parents(self, site: Site) -> None:
        noting = Noting("noting", [])

        @site.atask
        async def inner() -> None: ...

        @site.atask
        async def outer() -> None:
            await inner()

        use(noting, site.namespace)
        async with site.open():
            await soon(outer())
            for first, second in (noting.calls, noting.runs):
                assert (first.parent_id, first.root_id) == (None, first.id)
                assert (second.parent_id, second.root_id) == (first.id, first.id)

    async def test_arguments_and_results_can_be_changed_at_both_sides(self, site: Site) -> None:
        class Changing(Middleware):
            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                call.args = (*call.args, "call")
                return [*await proceed(), "call"]

            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                call.kwargs["last"] = "run"
                return [*await proceed(), "run"]

        @site.atask
        async def echo(*texts: str, last: str = "") -> list[str]:
            return [*texts, last]

        @site.atask(executor="thread")
        def blocking(*texts: str, last: str = "") -> list[str]:
            return [*texts, last]

        use(Changing(), site.namespace)
        async with site.open():
            assert await soon(echo("a")) == ["a", "call", "run", "run", "call"]
            assert await soon(blocking("a")) == ["a", "call", "run", "run", "call"]
            assert await soon(asyncio.to_thread(_sync_of_loop, echo)) == ["a", "call", "run", "run", "call"]

    async def test_what_is_around_a_blocking_function_is_in_its_thread(self, site: Site) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="unset")

        class Inside(Middleware):
            def __init__(self, name: str) -> None:
                self.name = name

            def run_blocking(self, call: Invocation, proceed: Callable[[], Any]) -> Any:
                variable.set(f"{variable.get()} {self.name} of {call.args[0]}")
                try:
                    return [*proceed(), self.name, threading.get_ident()]
                except Refused:
                    raise Refused(self.name) from None

        @site.atask(executor="thread")
        def blocking(text: str) -> list[object]:
            if text == "refuse":
                raise Refused
            return [variable.get(), threading.get_ident()]

        @site.atask
        async def on_the_loop(text: str) -> list[object]:
            return [variable.get(), threading.get_ident()]

        outer, inner = Inside("outer"), Inside("inner")
        use(outer, site.namespace)
        use(inner, site.namespace)
        async with site.open():
            seen, thread, *more = await soon(blocking("a"))
            assert seen == "unset outer of a inner of a"
            assert more == ["inner", thread, "outer", thread]
            with pytest.raises(Refused, match="outer"):
                await soon(blocking("refuse"))
            assert (await soon(on_the_loop("a")))[0] == "unset"
            assert variable.get() == "unset"

    async def test_the_body_sees_the_context_that_run_leaves(self, site: Site) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="unset")

        class Setting(Middleware):
            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                variable.set(call.name)
                return await proceed()

        @site.atask
        async def value() -> str:
            return variable.get()

        @site.atask(executor="thread")
        def value_in_thread() -> str:
            return variable.get()

        use(Setting(), site.namespace)
        async with site.open():
            assert await soon(value()) == value.name
            assert await soon(value_in_thread()) == value_in_thread.name
            assert variable.get() == "unset"

    async def test_exceptions_of_middlewares_are_those_of_the_call(self, site: Site) -> None:
        class Refusing(Middleware):
            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                if call.args == ("call",):
                    raise Refused("call")
                return await proceed()

            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                if call.args == ("run",):
                    raise Refused("run")
                try:
                    return await proceed()
                except KeyError:
                    raise Refused("mapped") from None

        began: list[str] = []

        @site.atask
        async def fail(where: str) -> None:
            began.append(where)
            raise KeyError(where)

        use(Refusing(), site.namespace)
        async with site.open():
            for where in ("call", "run"):
                with pytest.raises(Refused, match=where):
                    await soon(fail(where))
            assert began == []
            with pytest.raises(Refused, match="mapped"):
                await soon(fail("body"))

    async def test_middlewares_that_hang_are_under_the_deadline_of_the_call(self, site: Site) -> None:
        ended: list[str] = []

        class Hanging(Middleware):
            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                return await self._hang("call", call, proceed)

            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                return await self._hang("run", call, proceed)

            async def _hang(self, where: str, call: Invocation, proceed: Proceed) -> Any:
                if call.args == (where,):
                    try:
                        await asyncio.Event().wait()
                    finally:
                        ended.append(where)
                return await proceed()

        @site.atask(timeout=1)  # time enough to begin
        async def nothing(where: str) -> None: ...

        use(Hanging(), site.namespace)
        async with site.open():
            for where in ("call", "run"):
                with pytest.raises(CallTimeout, match="nothing"):
                    await soon(nothing(where))
            while ended != ["call", "run"]:  # the worker may hear of it a little later
                await soon(asyncio.sleep(0.01))

    async def test_each_further_proceed_is_a_call_of_its_own(self, site: Site) -> None:
        class Retrying(Middleware):
            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                while True:
                    try:
                        return await proceed()
                    except KeyError:
                        pass

        ids: list[str | None] = []
        tries: list[tuple[str | None, int | None]] = []

        @site.atask
        async def third_time(text: str) -> str:
            ids.append(current_call().id)
            tries.append((current_call().key, current_call().try_))
            if len(ids) < 3:
                raise KeyError(text)
            return text

        use(Retrying(), site.namespace)
        async with site.open():
            assert await soon(third_time("lucky")) == "lucky"
            assert len(set(ids)) == 3
            assert tries == [(ids[0], 1), (ids[0], 2), (ids[0], 3)], "the idempotency key stays"

    async def test_items_of_streams_pass_at_both_sides(self, site: Site) -> None:
        class Marking(Middleware):
            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                call.headers["step"] = "2"
                return self._marked("call", await proceed())

            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                step = int(call.headers["step"])
                return self._marked(f"run {step}", await proceed())

            async def _marked(self, mark: str, items: AsyncIterator[str]) -> AsyncIterator[str]:
                async for item in items:
                    yield f"{item} {mark}"
                yield f"end of {mark}"

        @site.atask
        async def letters(text: str) -> AsyncIterator[str]:
            for letter in text:
                yield letter

        async with site.open():
            if not await moves_streams(site):
                return
            use(Marking(), site.namespace)
            items: list[str] = []
            await read(letters("ab"), items)
            assert items == ["a run 2 call", "b run 2 call", "end of run 2 call", "end of call"]

    async def test_a_middleware_that_stops_an_iteration_makes_no_stream_empty(self, site: Site) -> None:
        class Stops(Middleware):
            where = ""

            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                if self.where == "call":
                    await anext(nothing())
                return await proceed()

            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                if self.where == "run":
                    await anext(nothing())
                return await proceed()

        @site.atask
        async def numbers() -> AsyncIterator[int]:
            yield 1

        stops = Stops()
        use(stops, site.namespace)
        async with site.open():
            if not await moves_streams(site):
                return
            items: list[int] = []
            await read(numbers(), items)
            assert items == [1]
            for stops.where in ("call", "run"):
                with pytest.raises(RuntimeError, match="a middleware raised StopAsyncIteration"):
                    await read(numbers(), items)

    async def test_leaving_a_stream_closes_what_is_around_it(self, site: Site) -> None:
        closed: list[str] = []
        over = asyncio.Event()

        class Holding(Middleware):
            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                return self._held("call", await proceed())

            async def run(self, call: Invocation, proceed: Proceed) -> Any:
                return self._held("run", await proceed())

            async def _held(self, where: str, items: AsyncIterator[int]) -> AsyncIterator[int]:
                try:
                    async for item in items:
                        yield item
                finally:
                    closed.append(where)

        @site.atask
        async def forever() -> AsyncIterator[int]:
            number = 0
            try:
                while True:
                    yield number
                    number += 1
            finally:
                closed.append("generator")
                over.set()

        async with site.open():
            if not await moves_streams(site):
                return
            use(Holding(), site.namespace)
            async with forever() as stream:
                assert [await soon(anext(stream)) for _ in range(3)] == [0, 1, 2]
            assert closed == ["call"]
            await soon(over.wait())
            assert sorted(closed) == ["call", "generator", "run"]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    async def test_headers_that_cannot_travel_are_refused(self, site: Site) -> None:
        class Heading(Middleware):
            headers: dict[Any, Any]

            async def call(self, call: Invocation, proceed: Proceed) -> Any:
                call.headers.update(self.headers)
                return await proceed()

        @site.atask
        async def nothing() -> int:
            return 1

        heading = Heading()
        use(heading, site.namespace)
        refused: list[tuple[dict[Any, Any], type[Exception]]] = [
            ({"a": 1}, TypeError),
            ({1: "a"}, TypeError),
            ({"": "a"}, TypeError),
            ({"a": "\udcff"}, ValueError),
            ({"a" * 1025: ""}, ValueError),
            ({str(n): "" for n in range(65)}, ValueError),
            ({"a": "secret" * 20_000}, ValueError),
        ]
        async with site.open():
            for heading.headers, kind in refused:
                with pytest.raises(kind, match="header") as caught:
                    await soon(nothing())
                assert "secret" not in str(caught.value)
            heading.headers = {"a" * 1024: "", "b": "x" * 60_000}
            assert await soon(nothing()) == 1


def _sync_of_loop(task: Any) -> Any:
    """Call `.sync` of the atask in a thread, and return its value."""
    return task.sync("a")
