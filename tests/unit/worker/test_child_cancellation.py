"""A cancellation in a process of `executor="process"`."""

# Private attributes: _is_cancellation.

from __future__ import annotations

import asyncio

import pytest

from atasks.worker.executors import child


class Disguised(Exception):
    """Says of itself that it is something else."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return asyncio.CancelledError


class Own(asyncio.CancelledError):
    """A subclass."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [(asyncio.CancelledError(), True), (Own(), True), (Disguised(), False), (ValueError(), False)],
)
def test_an_exception_is_a_cancellation_by_its_type(error: BaseException, expected: bool) -> None:
    assert child._is_cancellation(error) is expected
