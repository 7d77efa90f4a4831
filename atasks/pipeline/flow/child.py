"""The program of the process of a stage's worker, and the messages between the two sides.

The parent sends a message, its kind and its content, and waits for the answer. While a join runs, the child may
ask for items in between. A child ends when SIGTERM tells it to, and when its parent is gone; `on_done` runs first.

Calls that are quick are sent together. The child puts each result into memory that it shares with its parent,
so that those of the calls that have ended are not lost if it dies. It answers once: `DONE` if all results are
there, else with what became of the call behind them; what is behind that has not begun. While the child is busy,
the parent may ask over another socket for the calls that have not begun: a thread of the child takes them back.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from itertools import repeat
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from atasks import forks, logs
from atasks.modules import importing
from atasks.pipeline.flow.invocation import call_hook, iterator_of
from atasks.pipeline.flow.messages import FIXED, STREAM, ChildLink, ChildMessage, load, message
from atasks.quick_end import PARENT

if TYPE_CHECKING:
    from atasks.pipeline.flow.arguments import WorkerInfo
    from atasks.pipeline.flow.channel import Lineage
    from atasks.pipeline.flow.invocation import Invocation
    from atasks.pipeline.flow.threads import Outcome

__all__ = ["GRACE", "TAKEN", "SharedResults", "is_pythons", "main"]

PAUSE: Final = 0.005
"""Seconds in which a call that has others behind it has to end when the parent asks for those: else it gets all of
them, and half of them otherwise."""
GRACE: Final = 2.0
"""Seconds that a process has to run `on_done` and end, when it is told to or its parent is gone."""


_SIZE: Final = struct.Struct("=I")
_SECONDS: Final = struct.Struct("=d")
_PICKLED: Final = 1 << 31
"""The sizes of results that are messages have this bit. Others are marshalled, which is quicker."""
TAKEN: Final = struct.Struct("=II")
"""The answer to a parent that takes calls back: how many it gets, and the bytes of the results so far."""


_Waiting: TypeAlias = "tuple[Any, Lineage] | bytearray"
"""A call that was sent together with others and has not begun: read, or the message as the parent made it."""


class SharedResults:
    """Answers that a process leaves for its worker in memory that both share: each after its length in bytes, and
    all of them after the offset of their end, and after the seconds that the calls took.

    Safe to read once the process has said over a socket that they are there, or has died.
    """

    SIZE: Final = 1 << 16
    """Bytes of the memory."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of a file of `SIZE` bytes, which stays open."""
        self._memory = mmap.mmap(descriptor, self.SIZE)
        self._numbers = memoryview(self._memory).cast("I")
        """The memory, of which the first number is the end. A number is stored at once, whereas `pack_into` stores
        zeros before: a process that dies then would have no results."""

    @staticmethod
    def new_file() -> int:
        """Return the descriptor of a file in memory for it, or of one on disk where there are none in memory."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("atasks")
        else:
            import tempfile

            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, SharedResults.SIZE)
        return descriptor

    def clear(self) -> None:
        """Have it be empty."""
        self._numbers[0] = self.BEGIN
        self.took(0.0)

    def add(self, answer: Sequence[bytes | memoryview], mark: int = 0) -> bool:
        """Add an answer, in pieces. `mark` is added to its size. False: there is no room for it."""
        memory, numbers = self._memory, self._numbers
        begin = numbers[0]
        size = len(answer[0]) if len(answer) == 1 else sum(map(len, answer))
        end = begin + 4 + size
        if end > self.SIZE:
            return False
        memory[begin:end] = b"".join((_SIZE.pack(size | mark), *answer))
        numbers[0] = end  # now it is there, even if the process dies
        return True

    def add_result(self, result: Any) -> list[bytes | memoryview] | None:
        """Add the result of a call. There may be no room for it: then return the message that has it. Raises what
        pickling it raises."""
        if type(result) in FIXED:
            if self.add((marshal.dumps(result),)):
                return None
            return message(ChildMessage.VALUE, result)
        answer = message(ChildMessage.VALUE, result)
        return None if self.add(answer, _PICKLED) else answer

    def end(self) -> int:
        """Return the offset of the end."""
        return self._numbers[0]

    def took(self, seconds: float) -> None:
        """Note how long the calls took."""
        _SECONDS.pack_into(self._memory, _SIZE.size, seconds)

    def seconds(self) -> float:
        """Return how long they took."""
        seconds: float = _SECONDS.unpack_from(self._memory, _SIZE.size)[0]
        return seconds

    def read(self, begin: int, end: int) -> Iterator[Outcome]:
        """Yield what became of calls: the results between these offsets. The first one is at `BEGIN`."""
        memory = self._memory
        while begin < end:
            size = _SIZE.unpack_from(memory, begin)[0]
            at = begin + 4
            if size < _PICKLED:
                begin = at + size
                yield True, marshal.loads(memory[at:begin])
            else:
                begin = at + size - _PICKLED
                try:
                    yield True, pickle.loads(memory[at:begin])[1]
                except Exception as error:
                    yield False, error

    def close(self) -> None:
        """Let go of the memory."""
        self._numbers.release()
        self._memory.close()

    BEGIN: Final = _SIZE.size + _SECONDS.size


class _Terminated(BaseException):
    """The parent wants the child to end."""


def _terminate(number: int, frame: object) -> NoReturn:
    forks.handle_signal(signal.SIGTERM, _do_nothing)
    raise _Terminated


def _do_nothing(number: int, frame: object) -> None:
    """Handle a signal. Programs that the function starts inherit SIG_IGN, and not this."""


def main(descriptors: Sequence[int], setup: str = "") -> None:
    """Serve the parent, until it is gone or says so. `setup` names the function that prepares this process.

    The descriptors are of the way to the parent, of that by which it takes calls back, and of the memory for
    `SharedResults`.
    """
    descriptor, orders, memory = descriptors
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        forks.handle_signal(signal.SIGINT, _do_nothing)  # a Ctrl-C goes to the parent too, which ends its children
    for each in descriptors:
        os.set_inheritable(each, False)
    forks.withhold(descriptor)
    forks.withhold(orders)
    results = SharedResults(memory)
    os.close(memory)
    waiting: deque[_Waiting] = deque()
    parent = threading.Thread(
        target=_heed_parent, args=(descriptor, orders, waiting, results), name=PARENT, daemon=True
    )
    parent.start()
    if setup:
        from atasks import process_setup

        process_setup.run(setup)
    child = _Child(ChildLink(socket.socket(fileno=descriptor)), waiting, results)
    try:
        forks.handle_signal(signal.SIGTERM, _terminate)
        child.serve()
    except (_Terminated, EOFError, OSError):
        pass
    finally:
        forks.handle_signal(signal.SIGTERM, _do_nothing)
        child.finish()


def _heed_parent(descriptor: int, orders: int, waiting: deque[Any], results: SharedResults) -> None:
    """Give the parent the calls back that it asks for. When it is gone, see to it that this process ends, whatever
    it runs then."""
    poll = select.poll()
    poll.register(descriptor, 0)  # of a hang-up it tells in any case
    poll.register(orders, select.POLLIN)
    while all(ready != descriptor for ready, _ in poll.poll()):
        taken = 0
        try:
            if not os.read(orders, 1):
                break
            end = results.end()
            time.sleep(PAUSE)
            most = len(waiting) if end == results.end() else len(waiting) // 2  # calls end, if slowly
            while taken < most:  # and each is taken once
                waiting.pop()
                taken += 1
        except IndexError:
            pass
        except OSError:
            break
        with contextlib.suppress(OSError):
            os.write(orders, TAKEN.pack(taken, results.end()))
    time.sleep(GRACE)
    os._exit(1)


class _Child:
    def __init__(self, link: ChildLink, waiting: deque[_Waiting], results: SharedResults) -> None:
        self._own = frozenset(sys.modules)
        self._link = link
        self._waiting = waiting
        self._results = results
        self._name = ""
        self._call: Callable[..., Any] | None = None
        self._iterator: Iterator[Any] | None = None
        self._variables = copy_context()
        """The context of the item that is worked on: variables that it sets are not seen by the next one."""
        self._on_done: Callable[[], Any] | None = None

    def serve(self) -> None:
        """Answer one message after the other."""
        while True:
            received = self._link.receive()
            begun = time.monotonic()
            try:
                with importing():
                    kind, value, lineage = load(received)
                del received
                if kind == ChildMessage.CALLS.value:
                    answer = self._call_all(value, lineage)
                else:
                    answer = message(*self._answer(ChildMessage(kind), value, lineage))
                del value
            except Exception as error:
                answer = _failed(error)
                del error
            self._results.took(time.monotonic() - begun)
            self._link.send(answer)
            del answer

    def _call_all(self, sent: list[Any], lineages: Sequence[Lineage]) -> list[bytes | memoryview]:
        """Make the calls that were sent together, until one has failed or has a result for which there is no room
        in the memory, and return the answer."""
        waiting, results, call_one = self._waiting, self._results, self._call
        assert call_one is not None
        calls = iter(_read(sent, lineages))
        call = next(calls)
        waiting.extend(calls)
        while True:
            try:
                if type(call) is bytearray:
                    with importing():
                        _, value, lineage = pickle.loads(call)
                else:
                    value, lineage = call
                variables = self._variables = copy_context()
                answer = results.add_result(variables.run(call_one, value, lineage))
                del call, value
            except Exception as error:
                waiting.clear()
                return _failed(error)
            if answer is not None:
                waiting.clear()
                return answer
            try:
                call = waiting.popleft()
            except IndexError:  # it was the last one, or the parent has taken others back
                return message(ChildMessage.DONE)

    def finish(self) -> None:
        """Run `on_done`, if that is still to be done."""
        iterator, self._iterator = self._iterator, None
        on_done, self._on_done = self._on_done, None
        if isinstance(iterator, GeneratorType):
            iterator.close()
        if on_done is not None:
            on_done()

    def _answer(self, kind: ChildMessage, value: Any, lineage: Lineage) -> tuple[ChildMessage, Any]:
        match kind:
            case ChildMessage.START:
                self._start(*value)
                came = sys.modules.keys() - self._own
                return ChildMessage.VALUE, " ".join(filter(is_pythons, came))
            case ChildMessage.CALL:
                return ChildMessage.VALUE, self._result(value, lineage)
            case ChildMessage.BEGIN:
                self._iterator = iterator_of(self._result(value, lineage), self._name)
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
        name: str,
        invocation: Invocation,
        on_start: Callable[..., Any] | None,
        on_done: Callable[..., Any] | None,
        info: WorkerInfo | None,
        levels: dict[str, Any],
    ) -> None:
        logs.adopt(levels, f"process of stage {name}")
        if on_start is not None or on_done is not None:  # it may see to it that nothing can be imported any more
            _packing()
        state = {} if on_start is None else call_hook(on_start, {}, info) or {}
        if on_done is not None:
            self._on_done = lambda: call_hook(on_done, state, info)
        self._name = name
        self._call = invocation.prepare(state, info)

    def _result(self, value: Any, lineage: Lineage) -> Any:
        assert self._call is not None
        self._variables = copy_context()
        return self._variables.run(self._call, self._items() if value is STREAM else value, lineage)

    def _items(self) -> Iterator[Any]:
        """The stream of a join, item by item from the parent."""
        while True:
            self._link.send(message(ChildMessage.WANTED))
            kind, item, _ = load(self._link.receive())
            match ChildMessage(kind):
                case ChildMessage.VALUE:
                    yield item
                case ChildMessage.ENDED:
                    return
                case _:
                    raise RuntimeError("the stream has failed")


def _read(sent: list[Any], lineages: Sequence[Lineage]) -> Iterable[_Waiting]:
    """Read calls that were sent together. One that cannot be read stays as it is until its turn, and so do those
    behind it."""
    if bytearray not in map(type, sent):
        return zip(sent, lineages or repeat(()), strict=False)
    calls: list[_Waiting] = []
    with importing():
        for each, lineage in zip(sent, lineages or repeat(()), strict=False):
            try:
                calls.append(pickle.loads(each)[1:] if type(each) is bytearray else (each, lineage))
            except Exception:
                return calls + sent[len(calls) :]
    return calls


def is_pythons(name: str) -> bool:
    """Return True if the module that has this name here is Python's own."""
    if name.partition(".")[0] not in sys.stdlib_module_names:
        return False
    origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None) or ""
    return origin.startswith(os.path.dirname(os.__file__)) and "-packages" not in origin


def _failed(error: Exception) -> list[bytes | memoryview]:
    try:
        packed = _packing()
    except (ImportError, OSError):  # the function has confined this process
        text = f"cannot import what it needs to answer: {type(error).__name__}: {error}"
        return message(ChildMessage.CONFINED, text)
    return message(ChildMessage.FAILED, packed(error))


def _packing() -> Callable[[Exception], bytes]:
    from atasks.pipeline.flow.raised import packed  # when it is first needed: it imports a lot, `pickling` too

    return packed
