"""A call whose caller wants to know how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from atasks.definitions import WatchedName
from atasks.progress import Latest

if TYPE_CHECKING:
    from atasks.progress import Progress
    from atasks.router import Router
    from atasks.wire import Call

__all__ = ["WatchedCall"]

R = TypeVar("R")


class WatchedCall(Generic[R]):
    """A call that is awaited here, with what it reports of itself: `async with task.watch(...) as call`.

    The call begins with the block. `await call` gives its result or raises its exception, and cancelling that
    await cancels the call, as with any other one. Leaving the block before the call has ended cancels it too.

    Guarantees: a report is never a reason for the result to be late or lost, and reports may be missed. The last
    one of a run arrives before its result does, unless the connection or a full reply queue has cost it.
    """

    def __init__(self, router: Router, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._router = router
        self._name = name
        self._arguments: tuple[Sequence[Any], Mapping[str, Any]] | None = (args, kwargs)
        """None: it has begun."""
        self.task: asyncio.Task[R] | None = None
        """Awaits the call; None: it has not begun."""
        self._latest = Latest()

    async def __aenter__(self) -> WatchedCall[R]:
        if self._arguments is None:
            raise RuntimeError(f"{self!r} has begun already: task.watch(...) makes another call")
        (args, kwargs), self._arguments = self._arguments, None
        task, options = self._router._named(self._name)
        name = WatchedName(self._name)
        name.task, name.options, name.fill = task, replace(options, viewer=self._latest.put), _ask_for_reports
        made = self._router.send_request(name, *args, **kwargs)
        self.task = asyncio.get_running_loop().create_task(made, name=f"atasks watch {self._name}")
        self.task.add_done_callback(lambda _: self._latest.end())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._begun()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])

    def __await__(self) -> Generator[Any, None, R]:
        return self._begun().__await__()

    def progress(self) -> AsyncGenerator[Progress, None]:
        """The reports of the call, the latest one each time, until it has ended, in whatever way.

        A reader that is slow misses some, and slows nobody. `done` may fall: another attempt begins anew. Nothing
        is yielded if the call reports nothing, or if its worker is of a version that sends nothing.
        """
        self._begun()
        return self._latest.each()

    def _begun(self) -> asyncio.Task[R]:
        if self.task is None:
            raise RuntimeError(f"{self!r} has not begun: enter it, `async with task.watch(...) as call:`")
        return self.task

    def __repr__(self) -> str:
        state = "not begun" if self.task is None else "ended" if self.task.done() else "going on"
        return f"<watched call of {str(self._name)!r}, {state}>"


def _ask_for_reports(call: Call) -> None:
    call.reports = True
