"""Awaits that are cancelled while what they wait for goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from atasks.outlast import shield


async def _after(gate: asyncio.Event, outcome: Any) -> Any:
    await gate.wait()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def test_a_shield_gives_what_it_shields() -> None:
    gate = asyncio.Event()
    gate.set()
    assert await shield(_after(gate, 1)) == 1
    with pytest.raises(LookupError, match="two"):
        await shield(_after(gate, LookupError("two")))
    with pytest.raises(asyncio.CancelledError):
        await shield(_after(gate, asyncio.CancelledError()))
    done = asyncio.ensure_future(_after(gate, 3))
    await done
    assert await shield(done) == 3


@pytest.mark.parametrize("outcome", [1, LookupError("nobody awaits it")], ids=["value", "exception"])
async def test_a_shield_that_is_cancelled_leaves_the_rest_and_logs_nothing(
    outcome: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    work = asyncio.create_task(_after(gate, outcome))
    waiting = [asyncio.create_task(_wait(work)) for _ in range(3)]
    await asyncio.sleep(0)
    for one in waiting[:2]:
        one.cancel()
    with caplog.at_level(logging.DEBUG):
        await asyncio.wait(waiting[:2])
        assert not work.done()
        gate.set()
        ended = await asyncio.gather(waiting[2], return_exceptions=True)
    assert ended == [outcome]
    assert [one.cancelled() for one in waiting[:2]] == [True, True]
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_shield_may_end_in_the_turn_in_which_it_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    shielded = shield(work)
    shielded.cancel()
    work.set_exception(LookupError("nobody awaits it"))
    with caplog.at_level(logging.DEBUG):
        await asyncio.sleep(0.01)
    assert shielded.cancelled()
    assert [record.getMessage() for record in caplog.records] == []


async def _wait(work: asyncio.Task[Any]) -> Any:
    return await shield(work)
