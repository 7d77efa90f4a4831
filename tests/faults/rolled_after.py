"""The atasks of `tests.faults.rolled_before`, with one step less and one more before those that are in both."""

from __future__ import annotations

from atasks import Retry, atask
from tests.faults.resuming import begin, rolling

__all__ = ["begin", "reordered", "rolled", "strict", "versioned"]


@atask(resume=True, max_attempts=20, name="rolled")
async def rolled(key: str, gate: str) -> list[str]:
    """The names of its steps."""
    return await rolling("new", "second")(key, gate)


@atask(resume="new", max_attempts=20, name="versioned")
async def versioned(key: str, gate: str) -> list[str]:
    """The names of its steps, too: this one has a version of its own."""
    return await rolling("new", "second")(key, gate)


@atask(
    resume="strict", max_attempts=20, name="strict", retry=Retry(on=Exception, attempts=2, wait=0.0, jitter=0.0)
)
async def strict(key: str, gate: str) -> list[str]:
    """The names of its steps, which are to be those of the run before."""
    return await rolling("new", "second")(key, gate)


@atask(resume=True, max_attempts=20, name="reordered")
async def reordered(key: str, gate: str) -> list[str]:
    """The names of its steps, which the other version takes in another order; it has another name for one."""
    return await rolling("third", "second", "renamed-after", "first")(key, gate)
