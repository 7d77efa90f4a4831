"""The program of a process of `executor="process"`: it serves one call after the other until the worker hangs
up."""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from atasks import current, forks, logs, modules, process_setup, wire
from atasks.codecs.base import Codec
from atasks.current import CurrentCall
from atasks.errors import DecodeError, LoadError
from atasks.functions import run_at_once
from atasks.namespaces import namespace_item, namespaces
from atasks.progress import PAUSE_SECONDS
from atasks.wire import VERSION, Call, Reply, Report, Status
from atasks.worker.executors.frames import HEADER, ProcessRequest, decode_request, frame
from atasks.worker.executors.references import Reference, find
from atasks.worker.outcome import Inside, decode_arguments, raised, returned

if TYPE_CHECKING:
    import asyncio

    from atasks.definitions import BaseTask
    from atasks.middleware import AroundRuns
    from atasks.progress import Progress

__all__ = ["prepare", "serve"]

T = TypeVar("T")


def prepare(channel: socket.socket, setup: str | None) -> None:
    """Call the function that prepares this process, if there is one. If that fails, tell the worker why in the
    place of `READY`, and end."""
    if setup is None:
        return
    try:
        process_setup.run(setup)
    except LoadError as error:
        text = " ".join(str(error).split()).encode()
        _say(channel, HEADER.pack(len(text)) + text)
        raise SystemExit(1) from None


def serve(
    channel: socket.socket,
    stream: BinaryIO,
    levels: dict[str, Any],
    codec: Codec,
    around: AroundRuns | None = None,
) -> None:
    """Answer the requests that arrive on `stream`, which reads from `channel`, until it ends.

    It logs at those `levels`, of the worker, whose middlewares are `around` what it runs. If the stream ends while
    a call runs, the worker is gone, and so is this process, at once.
    """
    # Who stops a whole group of processes means the worker, which ends this one when its calls are done. A handler
    # that does nothing, unlike SIG_IGN, is not inherited by the programs that a function starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        forks.handle_signal(number, _do_nothing)
    channel.set_inheritable(False)
    forks.withhold(channel.fileno())
    namespaces.register(codec.namespace, codec=codec)
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(stream, requests, busy), name="atasks-requests", daemon=True).start()
    child = _Child(codec, levels, around)
    _say(channel, frame(None))
    teller = _Teller(channel)
    while (content := requests.get()) is not None:
        busy.set()
        reply = child.answer(decode_request(content))
        del content
        busy.clear()
        try:
            teller.finish(reply)
        except OSError:  # the worker is gone
            os._exit(1)
    child.close()
    stream.close()
    channel.close()


def _say(channel: socket.socket, content: bytes) -> None:
    """Send it to the worker; if the worker is gone, end this process."""
    try:
        channel.sendall(content)
    except OSError:
        os._exit(1)


def _do_nothing(number: int, at: object) -> None:
    pass


def _read(stream: BinaryIO, requests: queue.SimpleQueue[bytes | None], busy: threading.Event) -> None:
    try:
        while header := stream.read(HEADER.size):
            requests.put(stream.read(*HEADER.unpack(header)))
    except OSError:
        pass
    if busy.is_set():
        os._exit(1)
    requests.put(None)


class _Teller:
    """Hands what calls report on to the worker: the latest one each time, ten times a second at most, and the last
    one before the reply."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._latest: Report | None = None
        """The latest one that the worker was not told of."""
        self._news: threading.Event | None = None
        """Wakes the thread that tells; None: nothing was reported yet."""
        current.tell_worker = self._tell
        os.register_at_fork(after_in_child=_tell_nobody)

    def finish(self, reply: Reply) -> None:
        """Send the last report, and then the reply. Raises OSError."""
        with self._lock:
            self._send()
            self._channel.sendall(frame(reply))

    def _tell(self, call_id: str, progress: Progress) -> None:
        """The call says how far it is. Called in any thread."""
        done, total, note, *_ = progress
        self._latest = Report(VERSION, call_id, done, total, note)
        if self._news is None:
            self._news = threading.Event()
            threading.Thread(target=self._go_on, args=(self._news,), name="atasks-reports", daemon=True).start()
        self._news.set()

    def _go_on(self, news: threading.Event) -> None:
        while news.wait():
            news.clear()
            with self._lock:
                try:
                    self._send()
                except OSError:  # the worker is gone
                    return
            time.sleep(PAUSE_SECONDS)

    def _send(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            self._channel.sendall(frame(latest))


def _tell_nobody() -> None:
    """In a fork, whose parent alone talks to the worker."""
    current.tell_worker = None


class _Child:
    """Runs calls: the coroutines of the middlewares and of a codec that may wait in an event loop, and the
    function outside of it, so that it may use `asyncio.run` as blocking code does.

    There is no event loop before one is needed: to import `asyncio` takes longer than the rest of the start.
    """

    def __init__(self, codec: Codec, levels: dict[str, Any], around: AroundRuns | None) -> None:
        self.codec = codec
        self._around = around
        self._levels = levels
        self._never_waits = _never_waits(codec)
        self._runner: asyncio.Runner | None = None
        self._functions: dict[Reference, Callable[..., Any]] = {}

    def close(self) -> None:
        """Close the event loop."""
        if self._runner is not None:
            self._runner.close()

    def _in_loop(self) -> asyncio.Runner:
        """The event loop."""
        if self._runner is None:
            import asyncio

            self._runner = asyncio.Runner()
        return self._runner

    def _run(self, coroutine: Coroutine[Any, Any, T], context: Context) -> T:
        """Run a coroutine that waits for the codec alone."""
        if self._never_waits:
            return context.run(run_at_once, coroutine)
        return self._in_loop().run(coroutine, context=context)

    def answer(self, request: ProcessRequest) -> Reply:
        """The reply to one request. Never raises."""
        call = request.call
        try:
            function = self._function(request.reference)
            current.lone_call = CurrentCall(
                call.id,
                call.attempt,
                request.deadline,
                call.parent,
                call.root or call.id,
                key=call.key or call.id,
                try_=call.try_,
                name=call.task,
                queue=request.queue,
            )
            return self._answer(call, function, request)
        except BaseException as error:
            text = str(error)
            if modules.UNGUARDED in text:
                message = f"a process of the worker cannot serve {call.task}: {modules.UNGUARDED}"
            else:
                text = " ".join(text.split())[:200]
                message = f"a process of the worker cannot serve {call.task} ({type(error).__name__}: {text})"
            return wire.ended(call.id, Status.FAILED, message, request.worker)
        finally:
            current.lone_call = None

    def _answer(self, call: Call, function: Callable[..., Any], request: ProcessRequest) -> Reply:
        context = Context()
        run = self._run
        worker, limit = request.worker, request.limit
        try:
            args, kwargs = run(decode_arguments(call, self.codec, function), context)
        except DecodeError as error:
            return wire.ended(call.id, Status.DECODE_ERROR, str(error), worker)
        try:
            if self._around is None:
                result = context.run(function, *args, **kwargs)
            else:
                result = self._inside(self._around, request, function, args, kwargs, context)
        except BaseException as error:
            if _is_cancellation(error):
                return wire.ended(call.id, Status.CANCELLED, f"{call.task} was cancelled in its process", worker)
            return run(raised(call, self.codec, worker, error, limit), context)
        finally:
            del args, kwargs
        return run(returned(call, self.codec, worker, result), context)

    def _inside(
        self,
        around: AroundRuns,
        request: ProcessRequest,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
        context: Context,
    ) -> Any:
        """Call the function inside the middlewares, which run in the event loop. The function runs outside of
        it, in the context of the middlewares."""
        loop = self._in_loop().get_loop()
        wanted: list[tuple[asyncio.Future[tuple[bool, Any]], Callable[..., Any], Any, Any]] = []

        async def body(inside: Inside, /, *args: Any, **kwargs: Any) -> Any:
            outcome = loop.create_future()
            wanted.append((outcome, inside(function), args, kwargs))
            loop.stop()
            returned, value = await outcome
            if not returned:
                raise value
            return value

        coroutine = around.run(request.call, _task(request.reference), request.queue, args, kwargs, body)
        running = loop.create_task(coroutine, context=context)
        running.add_done_callback(lambda _: loop.stop())
        while not running.done():
            loop.run_forever()
            while wanted:
                outcome, wrapped, args, kwargs = wanted.pop(0)
                try:
                    ended = True, context.run(wrapped, *args, **kwargs)
                except BaseException as error:
                    ended = False, error
                if not outcome.done():
                    outcome.set_result(ended)
        return running.result()

    def _function(self, reference: Reference) -> Callable[..., Any]:
        function = self._functions.get(reference)
        if function is None:
            function = self._functions[reference] = find(reference)
            logs.adopt(self._levels, "process of a worker")  # after its module may have said how to log
        return function


def _never_waits(codec: Codec) -> bool:
    """Return True if the coroutines of the codec need no event loop, because they are this package's own."""
    inner = getattr(codec, "inner", None)
    return type(codec).__module__.startswith("atasks.codecs.") and (inner is None or _never_waits(inner))


def _is_cancellation(error: BaseException) -> bool:
    """Return True for a `CancelledError` of asyncio, if that was imported."""
    exceptions = sys.modules.get("asyncio.exceptions")
    return exceptions is not None and issubclass(type(error), exceptions.CancelledError)


def _task(reference: Reference) -> BaseTask[..., Any] | None:
    """The atask, if the import of its module has registered it."""
    registry = getattr(namespace_item(reference.namespace), "registry", None)
    item = None if registry is None else registry.get(reference.name)
    return None if item is None else item.task
