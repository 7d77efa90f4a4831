"""Limits: never more at a time, and never more in a period."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from atasks import Limit, LimitError, NotSupported
from atasks.current import serving
from atasks.pipeline import map
from atasks.pipeline.run import Many, Run
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["LimitCases"]


class Inside:
    """Counts who is inside, and notes when each had its token: a body may begin much later on a busy machine."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.began: list[float] = []

    @contextmanager
    def visit(self) -> Iterator[None]:
        run = serving.get()
        self.began.append(time.perf_counter() if run is None else run.started)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield
        finally:
            self.now -= 1


class LimitCases(Cases):
    """A limit is one for all workers and callers of a transport; who waits for a token holds no slot."""

    async def test_never_more_at_once_and_others_go_on(self, site: Site) -> None:
        inside, gate = Inside(), asyncio.Event()
        limit = Limit("three", at_once=3, namespace=site.namespace)

        @site.atask(limit=limit)
        async def limited(n: int) -> int:
            with inside.visit():
                await gate.wait()
                return n

        @site.atask
        async def free(n: int) -> int:
            return n

        async with site.open(concurrency=4):
            if site.caller.limits is None:
                with pytest.raises(NotSupported):
                    await soon(limited(1))
                return
            await site.serve(concurrency=4) if not self.shared_transport else None
            calls = [asyncio.create_task(limited(n)) for n in range(40)]
            while inside.now < 3:
                assert await soon(free(7)) == 7
            for n in range(20):
                assert await soon(free(n)) == n, "forty calls wait, and hold no slot"
            assert inside.now == 3
            gate.set()
            assert await soon(asyncio.gather(*calls)) == list(range(40))
            assert inside.most == 3

    async def test_never_more_in_a_period(self, site: Site) -> None:
        inside = Inside()
        limit = Limit("rate", per_second=20, period=0.5, namespace=site.namespace)

        @site.atask(limit=limit)
        async def limited() -> None:
            with inside.visit():
                pass

        async with site.open():
            if site.caller.limits is None:
                return
            await site.serve() if not self.shared_transport else None
            await soon(asyncio.gather(*(limited() for _ in range(25))))
            assert len(inside.began) == 25
            began = sorted(inside.began)
            spans = [later - earlier for earlier, later in zip(began, began[10:], strict=False)]
            assert min(spans) > 0.495, spans

    async def test_both(self, site: Site) -> None:
        inside = Inside()
        limit = Limit("both", at_once=2, per_second=50, period=0.2, namespace=site.namespace)

        @site.atask(limit=limit)
        async def limited() -> None:
            with inside.visit():
                await asyncio.sleep(0.005)

        async with site.open():
            if site.caller.limits is None:
                return
            await soon(asyncio.gather(*(limited() for _ in range(25))))
            began = sorted(inside.began)
            spans = [later - earlier for earlier, later in zip(began, began[10:], strict=False)]
            assert inside.most <= 2
            assert min(spans) > 0.195, spans

    async def test_in_callers_atasks_and_threads(self, site: Site) -> None:
        inside = Inside()
        limit = Limit("anywhere", at_once=1, namespace=site.namespace)

        @site.atask
        async def inner() -> None:
            async with limit:
                with inside.visit():
                    await asyncio.sleep(0.001)

        @site.atask(executor="thread")
        def threaded() -> None:
            with limit.sync, inside.visit():
                time.sleep(0.001)

        async def here() -> None:
            async with limit:
                with inside.visit():
                    await asyncio.sleep(0.001)

        async with site.open(concurrency=2):
            if site.caller.limits is None:
                with pytest.raises(NotSupported):
                    await soon(here())
                return
            await soon(asyncio.gather(*(task() for task in (inner, threaded, here) for _ in range(5))))
            assert (inside.most, len(inside.began)) == (1, 15)

    async def test_keys_have_tokens_of_their_own(self, site: Site) -> None:
        inside: dict[str, Inside] = {"a": Inside(), "a b/ü": Inside()}
        limit = Limit("keyed", at_once=1, key=lambda tenant, n=0: tenant, namespace=site.namespace)
        both = asyncio.Barrier(2)

        @site.atask(limit=limit)
        async def limited(tenant: str, n: int) -> int:
            with inside[tenant].visit():
                if n == 0:
                    await both.wait()
                return n

        async with site.open():
            if site.caller.limits is None:
                return
            calls = [limited(tenant, n) for tenant in inside for n in range(5)]
            assert await soon(asyncio.gather(*calls)) == [*range(5), *range(5)]
            assert [each.most for each in inside.values()] == [1, 1]
            async with limit.of("a"):
                assert await soon(limited("a b/ü", 1)) == 1
            with pytest.raises(LimitError, match="key"):
                await soon(limited(None, 1))  # type: ignore[arg-type]

    async def test_what_is_cancelled_or_raises_takes_no_token_along(self, site: Site) -> None:
        limit = Limit("cancelled", at_once=1, namespace=site.namespace)
        entered = asyncio.Event()

        @site.atask(limit=limit)
        async def limited(n: int) -> int:
            if n == 0:
                raise ValueError("zero")
            if n == 1:
                entered.set()
                await asyncio.Event().wait()
            return n

        async with site.open():
            if site.caller.limits is None or "cancel" not in site.caller.supports:
                return
            with pytest.raises(ValueError, match="zero"):
                await soon(limited(0))
            first = asyncio.create_task(limited(1))
            await soon(entered.wait())
            second = asyncio.create_task(limited(2))
            with pytest.raises(TimeoutError):
                await limited.options(timeout=0.2)(3)
            second.cancel()
            await asyncio.wait((second,))
            first.cancel()
            assert await soon(limited(4)) == 4

    async def test_two_values_at_the_same_time(self, site: Site) -> None:
        name = f"two-{uuid.uuid4().hex}"
        ours = Limit(name, at_once=3, namespace=site.namespace)
        theirs = Limit(name, at_once=5, namespace=site.namespace)
        others = Limit(name, per_second=5, namespace=site.namespace)

        @site.atask(limit=theirs)
        async def limited() -> int:
            return 5

        async with site.open():
            limits = site.caller.limits
            if limits is None:
                return
            async with ours:
                pass
            if limits.follows_the_youngest:
                assert await soon(limited()) == 5
            else:
                with pytest.raises(LimitError, match=r"at_once=5.*at_once=3"):
                    await soon(limited())
            async with ours:
                pass
            with pytest.raises(LimitError, match=r"5 in 1 s here"):
                async with others:
                    pass

    async def test_two_values_while_calls_wait(self, site: Site) -> None:
        name = f"two-{uuid.uuid4().hex}"
        ours = Limit(name, at_once=1, namespace=site.namespace)
        others = Limit(name, per_second=5, namespace=site.namespace)

        @site.atask(limit=ours)
        async def limited(n: int) -> int:
            return n

        async with site.open():
            if site.caller.limits is None:
                return
            async with ours:
                waiting = [asyncio.create_task(limited(n)) for n in range(3)]
                with pytest.raises(LimitError, match=r"5 in 1 s here, and at_once=1 where"):
                    await soon(others.take())
            assert await soon(asyncio.gather(*waiting)) == [0, 1, 2]

    async def test_two_values_for_two_keys(self, site: Site) -> None:
        name = f"two-{uuid.uuid4().hex}"
        ours = Limit(name, at_once=1, key=str, namespace=site.namespace)
        theirs = Limit(name, at_once=2, key=str, namespace=site.namespace)

        async with site.open():
            if site.caller.limits is None:
                return
            async with ours.of("a"):
                with pytest.raises(LimitError, match=r"at_once=2 here, and at_once=1 where"):
                    await soon(theirs.take("b"))
            async with ours.of("b"):
                pass

    async def test_streams_hold_it_to_their_end(self, site: Site) -> None:
        limit = Limit("stream", at_once=1, namespace=site.namespace)
        inside = Inside()

        @site.atask(limit=limit)
        async def numbers() -> AsyncIterator[int]:
            with inside.visit():
                for n in range(3):
                    yield n

        async def read() -> list[int]:
            return [n async for n in numbers()]

        async with site.open():
            if site.caller.limits is None or "streams" not in site.caller.supports:
                return
            assert await soon(asyncio.gather(*(read() for _ in range(5)))) == [[0, 1, 2]] * 5
            assert inside.most == 1

    async def test_several_pipelines_share_a_limit(self, site: Site) -> None:
        limit, inside = Limit("pipelines", at_once=2, namespace=site.namespace), Inside()

        @site.atask(limit=limit)
        async def remote(n: int) -> int:
            with inside.visit():
                await asyncio.sleep(0.001)
                return n

        async def here(n: int) -> int:
            async with limit:
                with inside.visit():
                    await asyncio.sleep(0.001)
                    return n

        async with site.open():
            if site.caller.limits is None:
                return
            runs = [range(10) | map(remote, workers=10), range(10) | map(here, workers=10)]

            async def result(run: Run[int, Many]) -> list[int]:
                return sorted(await run)

            assert await soon(asyncio.gather(*(result(run) for run in runs))) == [list(range(10))] * 2
            assert inside.most <= 2

    async def test_a_nested_call_waits_without_a_slot(self, site: Site) -> None:
        limit = Limit("nested", at_once=1, namespace=site.namespace)

        @site.atask
        async def leaf(n: int) -> int:
            return n

        @site.atask(limit=limit)
        async def parent(n: int) -> int:
            return await leaf(n)

        async with site.open(concurrency=1):
            if site.caller.limits is None:
                return
            assert await soon(asyncio.gather(*(parent(n) for n in range(20)))) == list(range(20))
