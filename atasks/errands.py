"""Tasks that run aside, and that nobody awaits at the place where they begin."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Errands"]


T = TypeVar("T")


class Errands(set["asyncio.Task[Any]"]):
    """Those of one object that have not ended: the event loop itself does not keep tasks alive."""

    def __init__(self, name: str) -> None:
        """`name` is that of each task."""
        super().__init__()
        self._name = name

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it aside."""
        task = asyncio.get_running_loop().create_task(coroutine, name=self._name)
        self.add(task)
        task.add_done_callback(self.discard)
        return task

    async def ended(self) -> None:
        """Return when none is left, those included that begin meanwhile."""
        while self:
            await asyncio.wait(list(self))

    async def cancel(self) -> None:
        """End them."""
        for task in list(self):
            task.cancel()
        if self:
            await asyncio.wait(list(self))
