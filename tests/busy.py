"""Warnings that say of a program only that its machine is busy."""

from __future__ import annotations

from typing import Final

__all__ = ["without_warnings"]

WORDS: Final = (" blocked the event loop for ", " waited for a worker")
"""Words of those that come where a process did not run for 0.1 s, and a worker did not start for 5 s."""


def without_warnings(text: str) -> str:
    """Return the lines of what a program wrote without those warnings."""
    return "".join(line for line in text.splitlines(keepends=True) if not any(words in line for words in WORDS))
