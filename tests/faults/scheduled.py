"""Atasks of these tests that are called by schedules. Each run is put on record before it does anything else."""

from __future__ import annotations

from atasks import atask, current_call
from tests.faults.history import Recorder

__all__ = ["beat", "note"]


def _recorder() -> Recorder:
    recorder = current_call().state
    assert isinstance(recorder, Recorder), "workers of these tests have a recorder as their state"
    return recorder


@atask(every=0.25, overlap="allow")
async def beat() -> None:
    """The heart of the worker."""
    with _recorder().run("beat"):
        pass


@atask
async def note(key: str) -> None:
    """Called by a schedule that is made at run time."""
    with _recorder().run(key):
        pass
