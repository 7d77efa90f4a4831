"""The time that a call has in the middlewares at its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from atasks.errors import CallTimeout
from atasks.outlast import ends_at

__all__ = ["Budget"]

T = TypeVar("T")


class Budget:
    """The seconds that a call has, middlewares included. Inside of `proceed()` the transport's own timer runs."""

    def __init__(self, name: str, seconds: float | None) -> None:
        self._name = name
        self._seconds = seconds
        self.deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._scope: asyncio.Timeout | None = None
        self._inside = 0

    async def hold(self, awaitable: Awaitable[T]) -> T:
        """Await it until the deadline. Raises CallTimeout."""
        if self.deadline is None:
            return await awaitable
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scope = scope
                self._arm()
                return await awaitable
        except TimeoutError:
            if not scope.expired():
                raise
            raise CallTimeout(
                f"{self._name} did not finish within {self._seconds:g} s: a middleware at its caller took the time"
            ) from None
        finally:
            self._scope = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The call itself goes on."""
        self._inside += 1
        self._arm()
        try:
            yield
        finally:
            self._inside -= 1
            self._arm()

    def _arm(self) -> None:
        if self._scope is not None and not self._scope.expired():
            ends_at(self._scope, None if self._inside else self.deadline)
