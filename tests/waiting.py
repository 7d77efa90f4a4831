"""Waiting without an event loop for changes that no event announces. With one: `atasks.testing.until`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["DEADLINE", "wait_until"]

DEADLINE = 60.0
"""Seconds after which what a test waits for does not come any more."""


def wait_until(condition: Callable[[], Any], what: str = "", within: float = DEADLINE) -> None:
    """Return when the condition holds; an AssertionError says what did not happen within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"after {within:g} s still not: {what or condition}"
        time.sleep(0.01)
