"""Event loops whose tasks begin at once, by `asyncio.eager_task_factory` (Python 3.12 on)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from atasks.testing import Site, TransportConformance, soon
from tests.conformance.transports import OverAMQP, OverLocal, OverLocalHub, OverLoopback, OverMemory


class EagerCases(TransportConformance):
    """All that every transport is held to."""

    @pytest.fixture(autouse=True)
    async def eager(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        yield
        loop.set_task_factory(None)

    @pytest.mark.parametrize("depth", [120, 2000])
    async def test_a_long_chain(self, site: Site, depth: int) -> None:
        @site.atask
        async def chain(n: int) -> int:
            return 0 if n == 0 else 1 + await chain(n - 1)

        async with site.open(concurrency=1):
            assert await soon(chain(depth)) == depth


if sys.version_info >= (3, 12):

    class TestLoopback(OverLoopback, EagerCases):
        pass

    class TestMemory(OverMemory, EagerCases):
        pass

    class TestLocal(OverLocal, EagerCases):
        pass

    class TestLocalHub(OverLocalHub, EagerCases):
        pass

    class TestAMQP(OverAMQP, EagerCases):
        pass
