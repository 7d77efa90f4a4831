"""The program of the process of a stage's worker, and the messages between the two sides.

The parent sends a message, its kind and its content, and waits for the answer. While a join runs, the child may
ask for items in between. A child ends when SIGTERM tells it to, and when its parent is gone; `on_done` runs first.
"""

from __future__ import annotations

import enum
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from multiprocessing.connection import Connection
from types import GeneratorType
from typing import Any, Final, NoReturn

from atasks import forks, logs, process_setup
from atasks.codecs.base import Codec
from atasks.codecs.cloudpickle import by_value
from atasks.codecs.pickle import pickled
from atasks.errors import PipelineError
from atasks.failures.failures import decode_failure, encode_failure
from atasks.modules import UNGUARDED, importing, is_waited_in
from atasks.pipeline.flow.invocation import Invocation, WorkerInfo, call_hook, iterator_of

__all__ = ["GRACE", "STREAM", "ChildMessage", "main", "rebuilt", "to_bytes"]

GRACE: Final = 2.0
"""Seconds that a process has to run `on_done` and end, when it is told to or its parent is gone."""


class ChildMessage(enum.Enum):
    """The message types between a stage's worker and its process."""

    START = enum.auto()
    CALL = enum.auto()
    BEGIN = enum.auto()
    NEXT = enum.auto()
    FINISH = enum.auto()
    VALUE = enum.auto()
    ENDED = enum.auto()
    FAILED = enum.auto()
    WANTED = enum.auto()
    BROKEN = enum.auto()


class Stream(enum.Enum):
    """Stands for the stream that a join is called with."""

    STREAM = enum.auto()


STREAM = Stream.STREAM


def to_bytes(content: Any) -> bytes:
    """A pickle; what cannot be imported travels by value, and so does what the script that was started defines.

    Raises EncodeError for what belongs to this process, PipelineError for what is of a module that waits for this
    while it is imported, and what pickling it raises.
    """
    return pickled(content, by_value(_no_name), 5)


def _no_name(obj: Any) -> None:
    """cloudpickle alone decides which names lead to a class or function; but it would import their modules."""
    if isinstance(obj.__module__, str) and is_waited_in(obj.__module__):
        raise PipelineError(UNGUARDED)


class _Pickles(Codec):
    """For exceptions, which are taken apart as those of atasks are."""

    carries_types = True

    def __init__(self) -> None:
        self.namespace = ""  # of none: it is no namespace's codec

    async def encode(self, obj: Any) -> bytes:
        return to_bytes(obj)

    async def decode(self, content: bytes) -> Any:
        return pickle.loads(content)


def rebuilt(failure: bytes) -> BaseException:
    """The exception that a child raised."""
    error: BaseException = _finish(decode_failure(failure, _Pickles()))
    return error


def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("this coroutine should not have waited")


class _Terminated(BaseException):
    """The parent wants the child to end."""


def _terminate(number: int, frame: object) -> NoReturn:
    forks.handle_signal(signal.SIGTERM, _do_nothing)
    raise _Terminated


def _do_nothing(number: int, frame: object) -> None:
    """Handle a signal. Programs that the function starts inherit SIG_IGN, and not this."""


def main(descriptor: int, setup: str = "") -> None:
    """Serve the parent, until it is gone or says so. `setup` names the function that prepares this process."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        forks.handle_signal(signal.SIGINT, _do_nothing)  # a Ctrl-C goes to the parent too, which ends its children
    os.set_inheritable(descriptor, False)
    forks.withhold(descriptor)
    threading.Thread(target=_end_with_parent, args=(descriptor,), name="atasks parent", daemon=True).start()
    if setup:
        process_setup.run(setup)
    child = _Child(Connection(descriptor))
    try:
        forks.handle_signal(signal.SIGTERM, _terminate)
        child.serve()
    except (_Terminated, EOFError, OSError):
        pass
    finally:
        forks.handle_signal(signal.SIGTERM, _do_nothing)
        child.finish()


def _end_with_parent(descriptor: int) -> None:
    """See to it that this process ends when its parent is gone, whatever it runs then."""
    poll = select.poll()
    poll.register(descriptor, 0)  # of a hang-up it tells in any case
    poll.poll()
    time.sleep(GRACE)
    os._exit(1)


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._name = ""
        self._call: Callable[..., Any] | None = None
        self._iterator: Iterator[Any] | None = None
        self._variables = copy_context()
        """The context of the item that is worked on: variables that it sets are not seen by the next one."""
        self._on_done: Callable[[], Any] | None = None

    def serve(self) -> None:
        """Answer one message after the other."""
        while True:
            received = self._connection.recv_bytes()
            try:
                with importing():
                    kind, content = pickle.loads(received)
                answer = to_bytes(self._answer(kind, content))
            except Exception as error:
                failure = _finish(encode_failure(error, _Pickles(), hop="in a process of the stage"))
                answer = to_bytes((ChildMessage.FAILED, failure))
                del error
            self._connection.send_bytes(answer)

    def finish(self) -> None:
        """Run `on_done`, if that is still to be done."""
        iterator, self._iterator = self._iterator, None
        on_done, self._on_done = self._on_done, None
        if isinstance(iterator, GeneratorType):
            iterator.close()
        if on_done is not None:
            on_done()

    def _answer(self, kind: ChildMessage, content: Any) -> tuple[ChildMessage, Any]:
        match kind:
            case ChildMessage.START:
                self._start(*content)
                return ChildMessage.VALUE, None
            case ChildMessage.CALL:
                return ChildMessage.VALUE, self._result(*content)
            case ChildMessage.BEGIN:
                self._iterator = iterator_of(self._result(*content), self._name)
                return ChildMessage.VALUE, None
            case ChildMessage.NEXT:
                assert self._iterator is not None
                item = self._variables.run(next, self._iterator, STREAM)
                if item is not STREAM:
                    return ChildMessage.VALUE, item
                self._iterator = None
                return ChildMessage.ENDED, None
            case _:
                self.finish()
                return ChildMessage.VALUE, None

    def _start(
        self,
        invocation: Invocation,
        on_start: Callable[..., Any] | None,
        on_done: Callable[..., Any] | None,
        info: WorkerInfo,
        levels: dict[str, Any],
    ) -> None:
        logs.adopt(levels, f"process of stage {info.stage}")
        state = {} if on_start is None else call_hook(on_start, {}, info) or {}
        if on_done is not None:
            self._on_done = lambda: call_hook(on_done, state, info)
        self._name = info.stage
        self._call = invocation.prepare(state, info)

    def _result(self, value: Any, lineage: tuple[int, ...]) -> Any:
        assert self._call is not None
        self._variables = copy_context()
        return self._variables.run(self._call, self._items() if value is STREAM else value, lineage)

    def _items(self) -> Iterator[Any]:
        """The stream of a join, item by item from the parent."""
        while True:
            self._connection.send_bytes(to_bytes((ChildMessage.WANTED, None)))
            kind, item = pickle.loads(self._connection.recv_bytes())
            match kind:
                case ChildMessage.VALUE:
                    yield item
                case ChildMessage.ENDED:
                    return
                case _:
                    raise RuntimeError("the stream has failed")
