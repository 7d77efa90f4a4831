"""Warnings that say of a program only that its machine is busy."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

__all__ = ["calm", "is_warning", "without_warnings"]

WORDS: Final = (" blocked the event loop for ", " waited for a worker")
"""Words of those that come where a process did not run for 0.1 s, and a worker did not start for 5 s."""


def is_warning(line: str) -> bool:
    """True if this line is one of those warnings."""
    return any(words in line for words in WORDS)


def without_warnings(text: str) -> str:
    """Return the lines of what a program wrote without those warnings."""
    return "".join(line for line in text.splitlines(keepends=True) if not is_warning(line))


def calm(records: Iterable[logging.LogRecord]) -> list[logging.LogRecord]:
    """Return the records of a log without those warnings."""
    return [record for record in records if not is_warning(record.getMessage())]
