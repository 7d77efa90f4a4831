"""The items of a remote stream, for code without an event loop."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from atasks.caller.background import (
    _wait_for,
    refuse_in_loop,
)
from atasks.errors import NotConnected

if TYPE_CHECKING:
    from atasks.caller.stream import RemoteStream
    from atasks.router import Router

__all__ = ["SyncStream"]

T = TypeVar("T")
R = TypeVar("R")


class SyncStream(Generic[T]):
    """The items of a remote stream, for code without an event loop: `for item in numbers.sync(10)`.

    As `RemoteStream`: it begins at the first item that is asked for, and leaving the loop, `close()` and garbage
    collection close the generator at the worker. One thread at a time reads it.
    """

    def __init__(self, router: Router, stream: RemoteStream[T]) -> None:
        self._router = router
        self._stream = stream
        self._pid = os.getpid()
        self._reading = threading.Lock()

    def __iter__(self) -> SyncStream[T]:
        return self

    def __next__(self) -> T:
        """The next item. Raises how the stream ended, and what `ATask.sync` raises."""
        refuse_in_loop(f"{self!r}", "`async for` over the atask")
        try:
            return self._do("next()", self._stream.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Want no more items. Raises RuntimeError while another thread reads it."""
        with contextlib.suppress(NotConnected):  # the connection is gone, and the stream with it
            self._do("close()", self._stream.aclose)

    def send(self, value: Any) -> T:
        """Raises NotSupported: nothing can be sent into a generator that runs ahead on a worker."""
        return self._do("send()", lambda: self._stream.asend(value))

    def throw(self, *error: Any) -> T:
        """Close the stream, and raise NotSupported: nothing can be thrown into a generator on a worker."""
        return self._do("throw()", lambda: self._stream.athrow(*error))

    def _do(self, what: str, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Have it done in the event loop in which the stream has begun, or is to begin."""
        if not self._reading.acquire(blocking=False):
            raise RuntimeError(f"{what}: this stream is being read by another thread")
        try:
            begun = self._stream.loop if self._pid == os.getpid() else None  # else that loop does not run here
            return _wait_for(self._router, make, begun)
        finally:
            self._reading.release()

    def __enter__(self) -> SyncStream[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # else this would hide it
                raise

    def __repr__(self) -> str:
        return f"<synchronous {repr(self._stream).strip('<>')}>"
