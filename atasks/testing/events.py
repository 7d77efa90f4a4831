"""Events: who handles them, and how that may end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from atasks import CallError, Invocation, Middleware, Retry, RetryAfter, current_call, use
from atasks.events import event
from atasks.testing.cases import Cases
from atasks.testing.site import PATIENCE, Site, soon, until

__all__ = ["EventCases", "Heard", "WaitingEventCases"]


class Heard:
    """The notes of handlers, for a case that waits for them."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._more = asyncio.Condition()

    async def add(self, item: Any) -> None:
        """Note one more."""
        async with self._more:
            self.items.append(item)
            self._more.notify_all()

    async def more_than(self, count: int) -> list[Any]:
        """The items, as soon as there are more than so many."""
        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(lambda: len(self.items) > count)
        return list(self.items)

    async def until(self, count: int) -> list[Any]:
        """The items, sorted, as soon as there are so many."""
        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(lambda: len(self.items) >= count)
        assert len(self.items) == count, self.items
        return sorted(self.items)


class EventCases(Cases):
    """One handler of each group, or every worker; failures; nested awaits."""

    @pytest.fixture
    async def heard(self) -> Heard:
        """The notes that the handlers of the case make."""
        return Heard()

    async def test_event_for_each_group(self, site: Site, heard: Heard) -> None:
        @event(namespace=site.namespace)
        async def paid(order: int, *, late: bool = False) -> None: ...

        @paid.on(group="billing")
        async def bill(order: int, *, late: bool = False) -> None:
            await heard.add(("billing", order, late))

        @paid.on(group="stock")
        async def reserve(order: int, *, late: bool = False) -> None:
            await heard.add(("stock", order, late))

        async with site.open():
            if not site.shares_transport:
                await site.serve()
            for order in range(3):
                await soon(paid(order, late=order == 2))
            expected = [(group, order, order == 2) for group in ("billing", "stock") for order in range(3)]
            assert await heard.until(6) == expected

    async def test_event_for_every_worker(self, site: Site, heard: Heard) -> None:
        @event(namespace=site.namespace)
        async def changed(key: str) -> None: ...

        @changed.on()
        async def forget(key: str) -> None:
            await heard.add((key, current_call().state))

        async with site.open(state="first"):
            states = ["first"]
            if not site.shares_transport:
                await site.serve(state="second")
                states.append("second")
            await soon(changed("a"))
            assert await heard.until(len(states)) == [("a", state) for state in states]

    async def test_event_of_an_atask_and_a_handler_that_awaits(self, site: Site, heard: Heard) -> None:
        @event(namespace=site.namespace)
        async def asked(n: int) -> None: ...

        @site.atask
        async def double(n: int) -> int:
            return 2 * n

        @asked.on(group="answers")
        async def answer(n: int) -> None:
            first = await double(n)
            await heard.add(sum(await asyncio.gather(double(first), double(first))))

        @site.atask
        async def ask(n: int) -> None:
            await asked(n)

        async with site.open(concurrency=1):
            await soon(ask(3))
            assert await heard.until(1) == [24]
            await soon(answer(1))  # a handler is an atask
            assert sorted(heard.items) == [8, 24]

    async def test_event_whose_handler_fails(
        self, site: Site, heard: Heard, caplog: pytest.LogCaptureFixture
    ) -> None:
        @event(namespace=site.namespace)
        async def paid(order: int) -> None: ...

        @paid.on(group="billing")
        async def bill(order: int) -> None:
            if order == 1:
                raise ValueError("no such order")
            await heard.add(order)

        async with site.open(concurrency=1):
            with caplog.at_level(logging.WARNING):
                await soon(paid(1))
                await soon(paid(2))
                assert await heard.until(1) == [2]
                await site.check_quiet()
        assert caplog.text.count("ValueError: no such order") == 1
        assert "bill" in caplog.text
        assert "Traceback" in caplog.text

    async def test_event_without_handlers(self, site: Site) -> None:
        @event(namespace=site.namespace)
        async def paid(order: int) -> None: ...

        async with site.open(serve=False):
            await soon(paid(1))

    async def test_event_whose_handler_times_out(
        self, site: Site, heard: Heard, caplog: pytest.LogCaptureFixture
    ) -> None:
        @event(namespace=site.namespace)
        async def paid(order: int) -> None: ...

        @paid.on(group="billing", timeout=1)  # time enough to begin
        async def bill(order: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await heard.add(order)

        async with site.open():
            with caplog.at_level(logging.WARNING):
                await soon(paid(1))
                assert await heard.until(1) == [1]
                await site.check_quiet()
        assert any("deadline" in item.getMessage() for item in caplog.records)

    async def test_event_with_arguments(self, site: Site, heard: Heard) -> None:
        @event(namespace=site.namespace)
        async def paid(order: int, currency: str = "EUR") -> None: ...

        @paid.on(group="billing")
        async def bill(order: int, currency: str = "GBP") -> None:
            await heard.add((order, currency))

        @paid.on  # type: ignore[arg-type]  # type checkers want the default too
        async def book(number: int, currency: str) -> None:
            await heard.add((number, currency))

        with pytest.raises(TypeError, match=r"paid\.on\(group='billing'\)"):
            paid.on("billing")  # type: ignore[call-overload]

        async with site.open():
            with pytest.raises(TypeError):
                paid()  # type: ignore[call-arg, unused-coroutine]
            await soon(paid(order=1))
            await soon(paid(2, currency="USD"))
            assert await heard.until(4) == [(1, "EUR"), (1, "EUR"), (2, "USD"), (2, "USD")]
            with pytest.raises(CallError):
                await soon(paid(asyncio.get_running_loop()))  # type: ignore[arg-type]

    async def test_event_for_threads(self, site: Site, heard: Heard) -> None:
        loop = asyncio.get_running_loop()

        @event(namespace=site.namespace)
        async def paid(order: int) -> None: ...

        def note(order: int) -> None:
            asyncio.run_coroutine_threadsafe(heard.add(order), loop).result(PATIENCE)

        @paid.on(group="billing", executor="thread")
        def bill(order: int) -> None:
            note(order)

        @paid.on(executor="thread")
        def tell(order: int) -> None:
            note(order + 100)

        async with site.open(state=None):
            for order in range(5):
                await soon(paid(order))
            assert await heard.until(10) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]

    async def test_event_whose_handler_is_tried_again(
        self, site: Site, heard: Heard, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop = asyncio.get_running_loop()
        tries: list[tuple[int, int | None, bool]] = []

        @event(namespace=site.namespace)
        async def paid(order: int) -> None: ...

        def handle(order: int) -> None:
            call = current_call()
            tries.append((order, call.try_, call.key == call.id and call.attempt == 1))
            if order == 1 and call.try_ != 3:
                raise RetryAfter(0.5 if call.try_ == 1 else 0.01)
            if order == 3:
                raise OSError("never")
            if order == 4:
                raise ValueError("not worth it")

        @paid.on(group="billing", retry=Retry(on=(OSError,), attempts=3, wait=0.001, jitter=0.0))
        async def bill(order: int) -> None:
            handle(order)
            await heard.add(order)

        @paid.on(executor="thread", retry=Retry(on=(OSError,), attempts=3, wait=0.001, jitter=0.0))
        def tell(order: int) -> None:
            handle(order)
            asyncio.run_coroutine_threadsafe(heard.add(order + 100), loop).result(PATIENCE)

        async with site.open(concurrency=1):
            with caplog.at_level(logging.WARNING):
                await soon(paid(1))
                await until(lambda: len(tries) == 2, "both handlers pause")
                for order in (2, 3, 4):
                    await soon(paid(order))
                assert await heard.until(4) == [1, 2, 101, 102]
                assert sorted(heard.items[:2]) == [2, 102], "a pause holds no slot"
                await until(lambda: len(tries) == 16, "every try was made")
                await site.check_quiet()
            assert sorted(tries) == sorted(
                (order, number, True)
                for order, count in ((1, 3), (2, 1), (3, 3), (4, 1))
                for number in range(1, count + 1)
                for _ in "ab"
            )
        assert caplog.text.count("OSError: never") == 2
        assert caplog.text.count("ValueError: not worth it") == 2

    async def test_event_passes_the_middlewares(self, site: Site, heard: Heard) -> None:
        class Noting(Middleware):
            async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
                call.headers["from"] = "the publisher"
                call.args = (call.args[0] + 1,)
                await heard.add(("call", call.name, call.submitted, call.args))
                return await proceed()

            async def run(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
                await heard.add(("run", call.name, call.headers["from"] == "the publisher", call.args))
                return await proceed()

        @event(name="paid", namespace=site.namespace)
        async def paid(order: int) -> None: ...

        @paid.on(group="billing", name="bill")
        async def bill(order: int) -> None:
            await heard.add(("body", "bill", True, (order,)))

        use(Noting(), site.namespace)
        async with site.open():
            await soon(paid(1))
            await heard.until(3)
        assert heard.items == [
            ("call", "paid", True, (2,)),
            ("run", "bill", True, (2,)),
            ("body", "bill", True, (2,)),
        ]

    async def test_event_that_cannot_be_decoded(
        self, site: Site, heard: Heard, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Strange:
            def __reduce__(self) -> Any:
                return (_refuse, ())

        @event(namespace=site.namespace)
        async def paid(order: Any) -> None: ...

        @paid.on(group="billing")
        async def bill(order: Any) -> None:
            await heard.add(order)

        async with site.open():
            with caplog.at_level(logging.WARNING):
                await soon(paid(Strange()))
                await soon(paid(1))
                assert await heard.until(1) == [1]
                await site.check_quiet()
        assert any("cannot be decoded" in item.getMessage() for item in caplog.records)


class WaitingEventCases(EventCases):
    """Cases of events where another worker may come later."""

    async def test_events_wait_for_a_worker_of_the_group(self, site: Site, heard: Heard) -> None:
        @event(namespace=site.namespace)
        async def paid(order: int) -> None: ...

        @paid.on(group="billing")
        async def bill(order: int) -> None:
            await heard.add(order)

        async with site.open():
            await site.worker.drain(0)
            await soon(paid(1))
            await soon(paid(2))
            assert heard.items == []
            site.workers.clear()
            await site.serve()
            assert await heard.until(2) == [1, 2]


def _refuse() -> None:
    raise ValueError("never again")
