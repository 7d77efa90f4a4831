"""Messages of strangers that were refused, counted, with few lines in the log however many come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["Refusals"]

REPORT_SECONDS: Final = 60.0


class Refusals:
    """Counts what is refused, by reason; the log has a line for it at once, and then one a minute at most."""

    def __init__(self, log: Callable[..., object], text: str) -> None:
        """`log(text, what)` writes a line, for example the `warning` of a logger; `text` has one `%s`, for the
        numbers and their reasons."""
        self.counts: Counter[str] = Counter()
        """Reason -> messages, or parts of them, that were refused for it."""
        self._log = log
        self._text = text
        self._reported: Counter[str] = Counter()
        self._report_at = 0.0

    def add(self, reason: str, times: int = 1, latest: str = "") -> None:
        """Count this many for the reason, one of a fixed few. `latest` describes the last of them for the log."""
        self.counts[reason] += times
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            new = self.counts - self._reported
            self._reported = self.counts.copy()
            what = ", ".join(f"{number} {each}" for each, number in sorted(new.items()))
            self._log(self._text, f"{what} ({latest})" if latest else what)
