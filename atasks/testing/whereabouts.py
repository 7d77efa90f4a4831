"""Errors that say where the call was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atasks import CallTimeout, current_call
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["WhereaboutsCases"]


class WhereaboutsCases(Cases):
    """A call that ends because its time is over says where it was."""

    async def test_a_deadline_names_the_call_that_was_awaited(self, site: Site) -> None:
        ids: list[str | None] = []
        ended = asyncio.Event()

        @site.atask
        async def inner() -> None:
            ids.append(current_call().id)
            await asyncio.Event().wait()

        @site.atask
        async def outer() -> None:
            try:
                try:
                    await inner()
                except CallTimeout:  # its deadline is the same one
                    await asyncio.Event().wait()
            finally:
                ended.set()

        async with site.open():
            if "cancel" not in site.caller.supports:  # the minimal contract tells nobody
                return
            with pytest.raises(CallTimeout, match=r"did not finish within 1\.5 s") as caught:
                await soon(outer.options(timeout=1.5)())
            error = caught.value
            assert error.waited_for == "run"
            assert error.worker == site.worker.id
            assert error.ran is not None
            assert error.awaited == ids[0]
            await soon(ended.wait())
            assert f"awaited {inner.name!r} (call {ids[0]})" in str(error)

    async def test_a_deadline_says_that_the_call_waited_for_a_slot(self, site: Site) -> None:
        began = asyncio.Event()

        @site.atask
        async def busy() -> None:
            began.set()
            await asyncio.Event().wait()

        async with site.open(concurrency=1):
            if "cancel" not in site.caller.supports:
                return
            first = asyncio.create_task(_of(busy()))
            await soon(began.wait())
            with pytest.raises(CallTimeout, match="busy") as caught:
                await soon(busy.options(timeout=1.0)())
            assert caught.value.waited_for == "turn"
            assert (caught.value.ran, caught.value.awaited) == (None, None)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first


async def _of(awaitable: Any) -> Any:
    return await awaitable
