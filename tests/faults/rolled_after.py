"""The atasks of `tests.faults.rolled_before`, with one step less and one more before those that are in both."""

from __future__ import annotations

from atasks import atask
from tests.faults.resuming import begin, rolling

__all__ = ["begin", "rolled", "versioned"]


@atask(resume=True, max_attempts=20, name="rolled")
async def rolled(key: str, gate: str) -> list[str]:
    """The names of its steps."""
    return await rolling("new", "second")(key, gate)


@atask(resume="new", max_attempts=20, name="versioned")
async def versioned(key: str, gate: str) -> list[str]:
    """The names of its steps, too: this one has a version of its own."""
    return await rolling("new", "second")(key, gate)
