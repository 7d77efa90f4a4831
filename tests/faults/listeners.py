"""An event of these tests, and its handlers. Each run of one is put on record before it does anything else."""

from __future__ import annotations

import asyncio
import os

from atasks import current_call, event
from tests.faults.history import Recorder

__all__ = ["told"]


@event
async def told(key: str, gate: str) -> None: ...


def _recorder() -> Recorder:
    recorder = current_call().state
    assert isinstance(recorder, Recorder), "workers of these tests have a recorder as their state"
    return recorder


@told.on(group="one")
async def handle(key: str, gate: str) -> None:
    """Return once the file exists."""
    with _recorder().run(key):
        while not os.path.exists(gate):
            await asyncio.sleep(0.02)
