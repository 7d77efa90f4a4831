"""A call whose caller wants to know how far it is, for code without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from atasks.caller.background import _wait_for, iterate_here, refuse_in_loop

if TYPE_CHECKING:
    from atasks.caller.watched import WatchedCall
    from atasks.progress import Progress
    from atasks.router import Router

__all__ = ["SyncWatchedCall"]

T = TypeVar("T")
R = TypeVar("R")

INSTEAD: Final = "`async with` task.watch(...)"


class SyncWatchedCall(Generic[R]):
    """A call that a thread waits for, with what it reports of itself: `with task.watch.sync(...) as call`.

    As `WatchedCall`: the call begins with the block, and leaving the block before it has ended cancels it. Several
    threads may read of it. All of it raises RuntimeError where an event loop runs, and what `ATask.sync` raises.
    """

    def __init__(self, router: Router, call: WatchedCall[R]) -> None:
        self._router = router
        self._call = call

    def __enter__(self) -> SyncWatchedCall[R]:
        try:
            self._do(self._call.__aenter__)
        except BaseException:  # a Ctrl-C may come when it has begun
            self._cancel()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        task = self._call.task
        if task is None or task.done():
            return
        self._cancel()  # by itself, because a thread whose own call was cancelled can wait for nothing
        try:
            self._do(lambda: _over(task))
        except Exception:
            if error is None:  # else this would hide it
                raise

    def progress(self) -> Iterator[Progress]:
        """The reports of the call, the latest one each time, until it has ended, in whatever way.

        A reader that is slow misses some, and slows nobody. `done` may fall: another attempt begins anew.
        """
        loop = self._begun().get_loop()
        return iterate_here(self._router, f"{self!r}", INSTEAD, self._call.progress, loop)

    def result(self) -> R:
        """The result, when the call has ended; raises its exception. A `KeyboardInterrupt` cancels the call."""
        self._begun()

        async def result() -> R:
            return await self._call

        return self._do(result)

    def _begun(self) -> asyncio.Task[R]:
        task = self._call.task
        if task is None:
            raise RuntimeError(f"{self!r} has not begun: enter it, `with task.watch.sync(...) as call:`")
        return task

    def _do(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have it done in the event loop in which the call has begun, or is to begin."""
        refuse_in_loop(f"{self!r}", INSTEAD)
        task = self._call.task
        return _wait_for(self._router, make, None if task is None else task.get_loop())

    def _cancel(self) -> None:
        task = self._call.task
        if task is not None:
            with suppress(RuntimeError):  # its event loop has closed, and the call has ended with it
                task.get_loop().call_soon_threadsafe(task.cancel)

    def __repr__(self) -> str:
        return f"<synchronous {repr(self._call).strip('<>')}>"


async def _over(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
