"""Tests compare nothing that a program says because its machine is busy."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

import atasks
from atasks import atask
from atasks.transport.unserved import WARN_SECONDS, Unserved
from tests.busy import calm, without_warnings


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "".join(f"{record.getMessage()}\n" for record in caplog.records if record.name.startswith("atasks"))


async def test_of_a_process_that_did_not_run(
    namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atasks.worker.watchdog.STILL_BLOCKED", 0.1)

    @atask(namespace=namespace)
    async def starved() -> None:
        time.sleep(0.5)  # noqa: ASYNC251
        await asyncio.sleep(0)

    async with atasks.connect(namespace=namespace):
        await starved()
    assert "starved" in said(caplog)
    assert without_warnings(f"first\n{said(caplog)}last") == "first\nlast"
    blocked = [record for record in caplog.records if "starved" in record.getMessage()]
    other = logging.makeLogRecord({"msg": "other"})
    assert calm([*blocked, other]) == [other]


def test_of_a_worker_that_did_not_start(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting:
        since = 1.0

    waiting: list[Any] = [Waiting()]
    for queue, calls in {"mail": waiting, "default": waiting * 2}.items():
        Unserved(logging.getLogger("atasks.tests")).see(queue, calls, 1.0 + WARN_SECONDS)
    assert len(caplog.messages) == 2
    assert without_warnings(said(caplog)) == ""
