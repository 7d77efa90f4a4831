"""What runs in a process of `executor="process"`: one call after the other, until the worker hangs up."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, BinaryIO

from atasks import current, forks, logs, modules, wire
from atasks.codecs.base import Codec
from atasks.current import CurrentCall
from atasks.errors import DecodeError
from atasks.namespaces import namespaces
from atasks.wire import Call, Reply, Status
from atasks.worker.execution import decode_arguments, raised, returned
from atasks.worker.executors.frames import HEADER, ProcessRequest, decode_request, frame
from atasks.worker.executors.references import Reference, find

__all__ = ["serve"]


def serve(channel: socket.socket, stream: BinaryIO, levels: dict[str, Any], codec: Codec) -> None:
    """Answer the requests that arrive on `stream`, which reads from `channel`, until it ends.

    It logs at those `levels`, of the worker. If the stream ends while a call runs, the worker is gone, and so is
    this process, at once.
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
    with asyncio.Runner() as runner:
        child = _Child(codec, runner, levels)
        channel.sendall(frame(None))
        while (content := requests.get()) is not None:
            busy.set()
            reply = child.answer(decode_request(content))
            del content
            busy.clear()
            try:
                channel.sendall(frame(reply))
            except OSError:  # the worker is gone
                os._exit(1)
    stream.close()
    channel.close()


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


class _Child:
    """Runs calls: the codec's coroutines in an event loop, and the function outside of it, so that it may use
    `asyncio.run` as blocking code does."""

    def __init__(self, codec: Codec, runner: asyncio.Runner, levels: dict[str, Any]) -> None:
        self.codec = codec
        self._levels = levels
        self._runner = runner
        self._functions: dict[Reference, Callable[..., Any]] = {}

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
            )
            return self._answer(call, function, request.worker, request.limit)
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

    def _answer(self, call: Call, function: Callable[..., Any], worker: str, limit: int) -> Reply:
        context = Context()
        run = self._runner.run
        try:
            args, kwargs = run(decode_arguments(call, self.codec, function), context=context)
        except DecodeError as error:
            return wire.ended(call.id, Status.DECODE_ERROR, str(error), worker)
        try:
            result = context.run(function, *args, **kwargs)
        except asyncio.CancelledError:
            return wire.ended(call.id, Status.CANCELLED, f"{call.task} was cancelled in its process", worker)
        except BaseException as error:
            return run(raised(call, self.codec, worker, error, limit), context=context)
        finally:
            del args, kwargs
        return run(returned(call, self.codec, worker, result), context=context)

    def _function(self, reference: Reference) -> Callable[..., Any]:
        function = self._functions.get(reference)
        if function is None:
            function = self._functions[reference] = find(reference)
            logs.adopt(self._levels, "process of a worker")  # after its module may have said how to log
        return function
