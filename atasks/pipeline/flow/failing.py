"""Exceptions on their way to the consumer."""

from __future__ import annotations

import asyncio

from atasks.errors import PipelineError

__all__ = ["FailedBefore", "add_note", "deliverable"]


class FailedBefore(PipelineError):
    """The call for an item failed in an earlier attempt at a run, and its stage goes on without the item."""


def deliverable(error: BaseException) -> BaseException:
    """Return the error for the consumer: the error itself, unless it would be mistaken for the consumer's own
    cancellation or end of iteration.

    A `CancelledError` would look as if the consumer had been cancelled, and `StopIteration` and
    `StopAsyncIteration` would end its loop: they are the cause of the error that it gets instead.
    """
    if isinstance(error, asyncio.CancelledError):
        other: BaseException = PipelineError("a call of the pipeline was cancelled, and not by its consumer")
    elif isinstance(error, (StopIteration, StopAsyncIteration)):
        other = RuntimeError(f"a stage raised {type(error).__name__}")
    else:
        return error
    other.__cause__ = error
    return other


def add_note(error: BaseException, note: str) -> None:
    """Say where it happened, once: the same exception may be raised for many items."""
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
