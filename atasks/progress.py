"""`Progress`: what a call reports of itself; and the latest of it, for those who want to know."""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import asyncio

__all__ = ["PAUSE_SECONDS", "Latest", "Progress"]

PAUSE_SECONDS: Final = 0.1
"""Between two reports of one call that are sent."""


class Progress(NamedTuple):
    """A report of a call about itself, made by `current_call().report()`: it is done with `done` of `total`."""

    done: float
    total: float | None = None
    """None: the call does not say."""
    note: str = ""
    """Up to 200 characters."""
    attempt: int = 1
    """The attempt that says so: the next one begins anew, so `done` may fall."""
    try_: int = 1
    """The try, of those that a `Retry` makes: the next one begins anew, too."""

    def __str__(self) -> str:
        share = f"{self.done:g}" if self.total is None else f"{self.done:g}/{self.total:g}"
        return f"{share} {self.note}".rstrip()


class Latest:
    """The latest progress of one call, for readers that take it when they like: one is kept, and none waits."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        """None: there was none so far."""
        self._over = False
        self._news: asyncio.Future[None] | None = None
        """Done when there is more to know; None: nobody waits for that."""

    def put(self, progress: Progress) -> None:
        """This is later, unless it is of an attempt, or of a try, before the latest one."""
        known = self.progress
        if known is None or (progress.try_, progress.attempt) >= (known.try_, known.attempt):
            self.progress = progress
            self._wake()

    def end(self) -> None:
        """There will be no other one."""
        self._over = True
        self._wake()

    async def each(self) -> AsyncGenerator[Progress, None]:
        """Yield the latest one whenever it is another one, until the last one was read."""
        seen = None
        while True:
            if self.progress is not seen and self.progress is not None:
                seen = self.progress
                yield seen
            elif self._over:
                return
            else:
                import asyncio  # whoever waits has it: a process of `executor="process"` does without it

                if self._news is None:
                    self._news = asyncio.get_running_loop().create_future()
                await asyncio.wait([self._news])  # not the future itself, which others wait for too

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)
