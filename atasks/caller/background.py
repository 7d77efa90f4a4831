"""The event loop of a program without one, and how a thread has a coroutine run there."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from atasks import current
from atasks.blocks import Block, entered_first, handed_over, innermost, settle, threads
from atasks.current import calling_thread, serving
from atasks.errors import NotConnected, NotSupported, TransportError

if TYPE_CHECKING:
    from atasks.router import Router
    from atasks.transport.contract import Transport

__all__ = [
    "Background",
    "call",
    "enter_background",
    "hand_over",
    "iterate_here",
    "refuse_in_loop",
    "run_here",
    "run_in",
]

T = TypeVar("T")

_log = logging.getLogger("atasks")

LOOP_ENDED: Final = "the event loop of this connection has ended: connect again, in a loop that runs"
CANCEL_PATIENCE: Final = 5.0
"""Seconds for which an interrupted thread waits for its call to be cancelled."""
WATCH_SECONDS: Final = 1.0
"""Seconds after which a thread that waits looks again whether the event loop can end its call at all."""
STUCK_SECONDS: Final = 10.0
"""Seconds for which an event loop has to wait for a thread until a call in it is given up."""
WAITING: Final = frozenset({"concurrent.futures._base", "concurrent.futures.thread", "queue", "threading"})
"""Modules whose functions wait for other threads."""
EXIT_SECONDS: Final = 7.0
"""Seconds that a program which ends waits for what it has left open: connections, and runs of pipelines."""


def call(name: str, router: Router, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Make the call from a thread; returns and raises as `await router.send_request(name, ...)` does.
    `ATask.sync` calls this."""
    return run_here(router, f"{name}.sync()", "`await` it", lambda: router.send_request(name, *args, **kwargs))


def run_here(router: Router, what: str, instead: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine where this thread's calls are made; returns and raises as it does.

    Raises RuntimeError where an event loop runs: its text names `what`, and says what to do `instead`.
    """
    refuse_in_loop(what, instead)
    return _wait_for(router, make)


def iterate_here(
    router: Router,
    what: str,
    instead: str,
    make: Callable[[], AsyncIterator[T]],
    begun: asyncio.AbstractEventLoop | None = None,
) -> Iterator[T]:
    """The items of what `make` returns, each waited for as `run_here` does: all in the event loop `begun`, if
    given, else in that of the first one. An iterator that is left early is closed by that loop."""
    loop, items = begun, None

    async def following() -> T:
        nonlocal loop, items
        if items is None:
            loop, items = asyncio.get_running_loop(), aiter(make())
        return await anext(items)

    while True:
        refuse_in_loop(what, instead)
        try:
            item = _wait_for(router, following, loop)
        except StopAsyncIteration:
            return
        yield item


def _wait_for(
    router: Router, make: Callable[[], Coroutine[Any, Any, T]], begun: asyncio.AbstractEventLoop | None = None
) -> T:
    """Run the coroutine in the event loop of this thread's calls; returns and raises as it does.

    That is the loop `begun`, if given; else the loop of the block that the thread is in; else the loop of the
    worker that the thread works for; else that of the namespace's lazy connection; else the background loop; else
    the loop of the oldest block.
    """
    if begun is not None and not begun.is_running():
        raise NotConnected(LOOP_ENDED)
    block = None if begun is not None else _block(router.namespace)
    elsewhere = begun if block is None else block.loop
    thread = calling_thread.get()
    if thread is not None and not thread.has_ended:
        if elsewhere is None or elsewhere is thread.loop:
            return _run(thread.loop, lambda: thread.wait_for(make))
        return _run(thread.loop, lambda: thread.wait_for(lambda: _forward(elsewhere, make)))
    if elsewhere is not None:
        return _run(elsewhere, make)
    run = serving.get()
    if run is not None and not run.ended:  # a thread that a coroutine has started, as asyncio.to_thread does
        return _run(run.loop, make)
    if router.lazy is not None:
        return router.lazy.run(make)
    background = _background
    if background is None or background.loop not in router._connected:
        block = entered_first(router._connected)
        if block is None:
            raise _unconnected(router)
        return _run(block.loop, lambda: _within(block, make))
    with _background_loop(router) as background:
        return _run(background.loop, make)


def run_in(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine in that event loop, for this thread; returns and raises as it does.

    Raises NotConnected if the loop ends, and RuntimeError where an event loop runs.
    """
    refuse_in_loop("a call that blocks", "await")
    return _run(loop, make)


"""Tasks that nobody awaits, and that have not ended."""


def hand_over(router: Router, what: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run the coroutine where the calls are made that are made here, and do not wait for it. What it raises is
    logged, with `what`. Raises NotConnected."""
    loop, made = _place(router, make)

    async def run() -> None:
        try:
            await made()
        except Exception as error:
            _log.error(
                "%s was not sent, and will not run (%s: %s)", what, type(error).__name__, error, exc_info=error
            )
        except asyncio.CancelledError:
            _log.error("%s was not sent, and will not run: its event loop has ended", what)
            raise

    def begin() -> None:
        task = loop.create_task(run(), name=what)
        handed_over.add(task)
        task.add_done_callback(handed_over.discard)

    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop is here:
        begin()  # at once: the block may be left in the same turn of the event loop
    else:
        loop.call_soon_threadsafe(begin)
        if router.lazy is not None:
            router.lazy.handed_over()


def _place(
    router: Router, make: Callable[[], Coroutine[Any, Any, Any]]
) -> tuple[asyncio.AbstractEventLoop, Callable[[], Coroutine[Any, Any, Any]]]:
    """The event loop for what this code hands over, and what is to be run there."""
    lazy = router.lazy
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        block = _block(router.namespace)
        run = serving.get()
        if block is not None:
            return block.loop, make
        if run is not None and not run.ended:
            return run.loop, make
        if lazy is not None:
            return lazy.loop, lambda: lazy.within(make)
        background = _background
        if background is not None and background.loop in router._connected:
            return background.loop, make
        block = entered_first(router._connected)
        if block is None:
            raise _unconnected(router) from None
        return block.loop, make
    transport = router.transport()
    if lazy is not None and transport is lazy.bridge:
        return lazy.loop, lambda: lazy.within(make)
    return here, make


async def _within(block: Block, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    if block.transport is None:
        raise NotConnected("the `connect` block of this call was left before the call began: end its calls first")
    return await make()


def _block(namespace: str) -> Block | None:
    """The block that this thread is in, if its event loop can run calls; not in a process that was forked."""
    here = innermost.get()
    block = None if here is None else here.find(namespace)
    return block if block is not None and block.pid == os.getpid() and block.loop.is_running() else None


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.users = 0
        self.open: list[AbstractAsyncContextManager[Transport]] = []
        """The connections that were made and not closed."""
        self.over = False
        """True once the program ends, and in a fork: nothing is open then, and names of modules may be gone."""
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._main, args=(started,), name="atasks-sync", daemon=True)
        try:
            self._thread.start()
            self.loop = started.result()
        except BaseException:  # a Ctrl-C has come: nobody will use the connection
            if not started.cancel():
                self._stop(started.result())
            raise
        _alive.add(self)

    def _main(self, started: concurrent.futures.Future[asyncio.AbstractEventLoop]) -> None:
        try:
            asyncio.run(self._until_stopped(started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)  # no loop could be made
            elif not (_ending and isinstance(error, RuntimeError)):
                # The interpreter is shutting down: Python 3.12 starts no thread then.
                raise
        finally:
            _alive.discard(self)

    async def _until_stopped(self, started: concurrent.futures.Future[asyncio.AbstractEventLoop]) -> None:
        self._stopped = asyncio.Event()
        if started.set_running_or_notify_cancel():
            started.set_result(asyncio.get_running_loop())
            await self._stopped.wait()
            await settle()
            while self.open:  # the program ends within the blocks
                with suppress(Exception):  # nobody is left to hear of it
                    await self.open.pop().__aexit__(None, None, None)

    def take_back(self, manager: AbstractAsyncContextManager[Transport]) -> bool:
        """Return True if the connection is still open: the caller of this method must close it then."""
        with _lock:
            if _over or manager not in self.open:
                return False
            self.open.remove(manager)
            return True

    def leave(self, *, wait: bool = True) -> None:
        """Use it no more. Whoever was the last one ends the loop, and may `wait` until its thread has ended."""
        global _background
        if self.over:
            return
        with _lock:
            self.users -= 1
            last = self.users == 0 and self is _background
            if last:
                _background = None
        if last:
            self.stop()
            if wait and not _over:
                self._thread.join()

    def stop(self) -> None:
        """End the loop, and close what is open. It has to be waited for in some other way."""
        with suppress(RuntimeError):  # it has ended
            self._stop(self.loop)

    def wait(self, seconds: float) -> None:
        """Return when its thread has ended, or after so many seconds."""
        self._thread.join(seconds)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(self._stopped.set)


_lock = threading.Lock()
_background: Background | None = None
_alive: set[Background] = set()
"""Those whose threads have not ended; one at the most serves new users."""
_ending = False
"""True once the program ends, and open connections are being closed."""
_over = False
"""True once the program ends and threads like those of the loops have stopped for good: nobody may wait for
them."""
_forked = False
"""True in a process that was forked from one that had connected, until it connects itself."""


def enter_background(connected: Router | None = None) -> Background:
    """The process's background loop, which lives until everybody has called its `leave`. It is started if there is
    none, but for a router that should be `connected` that is NotConnected."""
    global _background, _forked
    with _lock:
        if _over:
            raise NotConnected("the program ends: connect before that")
        if _background is None:
            if connected is not None:
                raise _unconnected(connected)
            _background = Background()
            _forked = False
        _background.users += 1
        return _background


@contextmanager
def _background_loop(connected: Router | None = None) -> Iterator[Background]:
    """The background loop, which lives at least as long as this block."""
    background = enter_background(connected)
    try:
        yield background
    finally:
        background.leave()


def _run(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine of `make` in a task of that loop, which another thread runs; returns and raises as it
    does.

    The task has a copy of this thread's context. Whatever interrupts this thread cancels it.
    """
    if _over:
        raise NotConnected("the program ends, and with it its connections: make the call before that")
    errand = _Errand(make)
    stuck = _Stuck()
    try:  # an interrupt may come at any point from here on
        loop.call_soon_threadsafe(errand.begin)
        while not errand.ended.wait(WATCH_SECONDS):
            stuck.look(loop)
        return errand.result()
    except BaseException as error:
        if loop.is_closed():
            if isinstance(error, RuntimeError) and not errand.ended.is_set():
                raise NotConnected(LOOP_ENDED) from None
        elif not errand.ended.is_set():
            loop.call_soon_threadsafe(errand.cancel)
            errand.ended.wait(CANCEL_PATIENCE)
        raise


async def _forward(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine of `make` in another event loop; returns and raises as it does. Cancelling this cancels
    it."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), loop))


attend: dict[int, Callable[[], threading.Event]] = {}
"""Threads that do something while they wait: the identity of each, and what makes the events that it waits for."""


class _Errand(Generic[T]):
    """A coroutine that a thread has run by an event loop."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self.ended = attend.get(threading.get_ident(), threading.Event)()

    def begin(self) -> None:
        """In the event loop."""
        if self.ended.is_set():  # interrupted before it began
            return
        self._task = asyncio.get_running_loop().create_task(self._make())
        self._task.add_done_callback(lambda _: self.ended.set())

    def cancel(self) -> None:
        """In the event loop."""
        if self._task is None:
            self.ended.set()
        else:
            self._task.cancel()

    def result(self) -> T:
        """In the thread, when it has ended. Raises what the coroutine raised."""
        task, self._task = self._task, None  # an exception refers to the frames above: break the reference cycle
        assert task is not None
        try:
            return task.result()
        finally:
            del task


class _Stuck:
    """An event loop of another thread that may never run again."""

    def __init__(self) -> None:
        self._frame: FrameType | None = None
        self._since = 0.0

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raise RuntimeError if it has been waiting for a thread all the time, which may be this one, and
        NotConnected if it was closed."""
        if loop.is_closed():
            raise NotConnected(LOOP_ENDED)
        frame = sys._current_frames().get(threads.get(loop, 0))
        if frame is None or frame.f_globals.get("__name__") not in WAITING:
            self._frame = None
        elif frame is not self._frame:
            self._frame, self._since = frame, time.monotonic()
        elif time.monotonic() - self._since >= STUCK_SECONDS:
            self._frame = None
            raise RuntimeError(
                "the event loop of this connection waits for a thread, and the call of this thread waits for that "
                "event loop: there, `await asyncio.to_thread(...)` instead of waiting for threads"
            )


def refuse_in_loop(what: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise RuntimeError(
            f"{what} needs a thread of its own, and gevent has made greenlets of threads: patch the rest only, "
            "gevent.monkey.patch_all(thread=False)"
        )
    raise RuntimeError(f"{what} blocks, and an event loop runs in this thread: {instead} instead")


def _unconnected(router: Router) -> TransportError:
    """The error of a call for which there is no connection."""
    namespace = router.namespace
    where = "" if namespace == "default" else f", namespace={namespace!r}"
    advice = f'enter `with atasks.connect_sync("amqp://localhost/"{where})` or another URL'
    if current.lone_call is not None:
        return NotSupported(
            "a function with executor='process' has no connection to call other atasks by: "
            f"use executor='thread', or {advice} in the function"
        )
    if _forked or any(block.pid != os.getpid() for blocks in router._connected.values() for block in blocks):
        return NotConnected(
            "this process was forked from one that had connected; connections do not survive a fork: "
            f"{advice} in the child"
        )
    return NotConnected(f"namespace {namespace!r} has no connection for synchronous callers: {advice} first")


def _at_exit() -> None:
    """End what is open while its loop still runs. What blocks the loop is not waited for: the process ends it."""
    global _ending, _over
    _ending = True
    deadline = time.monotonic() + EXIT_SECONDS
    left = list(_alive)
    for background in left:
        background.stop()
    for background in left:
        background.wait(max(deadline - time.monotonic(), 0))
    with _lock:
        _over = True
        for background in left:
            background.over = True


def _after_fork() -> None:
    """The parent's loop and its thread are not here; a lock that another thread held would stay locked."""
    global _lock, _background, _forked
    for background in _alive:
        background.over = True
    _alive.clear()
    handed_over.clear()
    _forked = _forked or _background is not None
    _lock, _background = threading.Lock(), None
    serving.set(None)
    calling_thread.set(None)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
