"""Failures of calls that nobody may await: the worker logs them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from atasks import CallTimeout, RemoteError, atask
from atasks.pipeline import map
from atasks.testing import soon, until
from tests.unit.serving import serve


def unheard(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The failures that the workers logged."""
    records = [record for record in caplog.records if record.name == "atasks.call"]
    return [f"{each.getMessage()}\n{each.exc_text}" for each in records if each.levelno == logging.WARNING]


def atasks_of(namespace: str) -> tuple[Any, ...]:
    @atask(namespace=namespace, orphan="run")
    async def fails(secret: str) -> None:
        raise LookupError("nothing there") from KeyError("cause")

    @atask(namespace=namespace, orphan="run")
    async def sleeps() -> None:
        await asyncio.Event().wait()

    @atask(namespace=namespace, orphan="run")
    async def returns(value: int) -> int:
        return value

    @atask(namespace=namespace)
    async def awaited(value: int) -> int:
        raise LookupError("its caller hears of it")

    return fails, sleeps, returns, awaited


async def test_a_call_that_runs_without_its_caller(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    fails, sleeps, returns, awaited = atasks_of(namespace)
    async with serve(namespace):
        with pytest.raises(LookupError):
            await soon(fails("a payload"))
        with pytest.raises(CallTimeout):
            await soon(sleeps.options(timeout=1.0)())  # time enough to begin
        assert await soon(returns(3)) == 3
        with pytest.raises(LookupError):
            await soon(awaited(1))
        await until(lambda: len(unheard(caplog)) >= 2)
    failed, timed_out = unheard(caplog)
    assert failed.startswith(f"{fails.name}, call ")
    assert "Traceback (most recent call last):" in failed
    assert "KeyError: 'cause'" in failed
    assert "LookupError: nothing there" in failed
    assert "a payload" not in failed.replace('fails("a payload")', "")
    assert "timed_out" in timed_out
    assert sleeps.name in timed_out


async def test_a_submitted_run(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    *_, awaited = atasks_of(namespace)
    async with serve(namespace):
        handle = await soon(map(awaited).submit(1))
        with pytest.raises((LookupError, RemoteError)):
            await soon(handle)
    (failed,) = unheard(caplog)
    assert handle.id in failed
    assert "LookupError: its caller hears of it" in failed
    assert "in stage 'awaited'" in failed
