"""`current_call().report`: the worker keeps the last one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atasks import current_call
from atasks.testing import Site, soon
from atasks.transport.loopback import LoopbackTransport


async def test_the_last_report_is_kept_while_the_call_runs() -> None:
    site = Site(LoopbackTransport, shared=True)
    shown: list[str] = []

    def reported() -> None:
        shown.extend(str(run.progress) for run in site.worker.runs)

    @site.atask
    async def work() -> None:
        call = current_call()
        reported()
        for done in range(4):
            call.report(done, 10, "pages")
        reported()
        await asyncio.to_thread(lambda: current_call().report(0.5))
        reported()
        call.report(1, note="x" * 1000)
        reported()

    @site.atask(executor="thread")
    def blocking() -> None:
        current_call().report(7, 7)

    async with site.open():
        await soon(work())
        assert shown == ["None", "3/10 pages", "0.5", f"1 {'x' * 200}"]
        await soon(blocking())
        current_call().report(1, 2)  # outside of a call nothing happens
    site.close()


@pytest.mark.parametrize("arguments", [("1",), (1, "2"), (1, 2, 3), (None,)])
def test_what_makes_no_sense_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="report"):
        current_call().report(*arguments)
