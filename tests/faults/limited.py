"""Atasks with limits, which note when each run had its token, and when it went."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from atasks import Limit, atask, current_call
from atasks.current import serving

__all__ = ["limited", "limited_and_rated", "rated"]

THREE: Final = Limit("three", at_once=3)
TEN: Final = Limit("ten", per_second=10)
FIVE: Final = Limit("five", at_once=2, per_second=20, period=0.5)


async def _visit(log: str, seconds: float) -> int:
    """Note in the file when it had its token, and when it goes: one system call each, so lines of processes do not
    mix. A busy machine may begin the body long after that, and then the period of the token has begun before."""
    run = serving.get()
    assert run is not None
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    call = current_call().id
    try:
        os.write(file, f"in {call} {os.getpid()} {run.started}\n".encode())
        await asyncio.sleep(seconds)
        os.write(file, f"out {call} {os.getpid()} {time.perf_counter()}\n".encode())
    finally:
        os.close(file)
    return os.getpid()


@atask(limit=THREE, max_attempts=20)
async def limited(log: str, seconds: float) -> int:
    """Three at a time."""
    return await _visit(log, seconds)


@atask(limit=TEN, max_attempts=20)
async def rated(log: str, seconds: float) -> int:
    """Ten in a second."""
    return await _visit(log, seconds)


@atask(limit=FIVE, max_attempts=20)
async def limited_and_rated(log: str, seconds: float) -> int:
    """Two at a time, ten in half a second."""
    return await _visit(log, seconds)
