"""Processes that belong to a stage's workers, one each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atasks import forks, logs, modules, process_setup, quick_end
from atasks.errors import PipelineError
from atasks.fork_server.starting import Child, start
from atasks.pipeline.flow.ahead import Ahead, ProcessAhead
from atasks.pipeline.flow.arguments import WorkerInfo
from atasks.pipeline.flow.channel import Lineage
from atasks.pipeline.flow.child import GRACE, TAKEN, SharedResults, is_pythons, main
from atasks.pipeline.flow.invocation import ELEMENT_INDEX, WORKER_INFO, wanted_names
from atasks.pipeline.flow.items import SyncItems
from atasks.pipeline.flow.messages import (
    STREAM,
    ChildLink,
    ChildMessage,
    Incoming,
    load,
    message,
    together,
)
from atasks.pipeline.flow.pickling import to_bytes
from atasks.pipeline.flow.raised import rebuilt
from atasks.pipeline.flow.runners import ENDED, ThreadRunner, next_or_end
from atasks.pipeline.flow.threads import Outcome, attempt

if TYPE_CHECKING:
    from atasks.pipeline.stages.functions import FunctionStage

__all__ = ["Process", "ProcessRunner", "check_picklable"]

DONE = object()
"""The answer if all results are in the shared memory."""

_COMMAND = (
    "import gc, sys; collects = gc.isenabled(); gc.disable(); fds, setup, words, *rest = sys.argv[1:]; "
    "sys.argv[:], sys.path[:] = rest[: int(words)], rest[int(words) :]; "
    "from atasks.pipeline.flow.child import main; from atasks.quick_end import end; "
    "own = {*sys.modules}; gc.freeze(); collects and gc.enable(); "
    "main([*map(int, fds.split())], setup); end(own)"
)
"""The program of a child. What is imported stays, so the garbage collector need not look through it."""


def check_picklable(stage: FunctionStage) -> None:
    """Raise a TypeError if the stage cannot be sent to a process."""
    try:
        to_bytes((stage.invocation, stage.on_start, stage.on_done))
    except Exception as error:
        raise TypeError(
            f"{stage.name!r} cannot run in a process, because it or what is bound to it cannot be pickled: {error}"
        ) from error


class Process:
    """A child that runs a stage's function. Its methods block, but for `terminate`: they belong into a thread."""

    def __init__(self, stage: FunctionStage, info: WorkerInfo) -> None:
        self._stage = stage
        self._info = info
        self._process: Child | None = None
        self._link: ChildLink | None = None
        self._orders: socket.socket | None = None
        self._results: SharedResults | None = None
        self.answered = 0
        """The bytes of the last answer, and of the results that came with it."""
        self.seconds = 0.0
        """The seconds that the process has worked on it."""
        self._read_to = 0
        """The offset of the first of `_results` that was not read."""
        self._stream: SyncItems | None = None
        self._lock = threading.Lock()
        self.wants_lineages = ELEMENT_INDEX in stage.invocation.names
        """The function asks for the lineages of its items."""
        self.ended = False
        """True once the process has died or was told to end."""

    def start(self) -> None:
        """Start it, and run `on_start` there. Raises what that raises."""
        if modules.is_importing():
            raise PipelineError(modules.UNGUARDED)
        with contextlib.ExitStack() as theirs:
            here, there = socket.socketpair()
            self._link = ChildLink(here)
            self._orders, orders = socket.socketpair()
            memory = SharedResults.new_file()
            self._results = SharedResults(memory)
            theirs.callback(os.close, memory)
            theirs.callback(there.close)
            theirs.callback(orders.close)
            forks.withhold(here.fileno())
            forks.withhold(self._orders.fileno())
            descriptors = [there.fileno(), orders.fileno(), memory]
            argv = [str(word) for word in sys.argv]
            setup = process_setup.remembered() or ""
            words = [setup, str(len(argv)), *argv, *map(str, sys.path)]
            process = start(_modules(), _COMMAND, words, descriptors)
            with self._lock:
                self._process = process
                if self.ended:
                    process.terminate()
                    raise PipelineError("the run is over")
        stage = self._stage
        invocation, hooks = stage.invocation, (stage.on_start, stage.on_done)
        names = {*invocation.names, *(name for hook in hooks if hook is not None for name in wanted_names(hook))}
        info = self._info if WORKER_INFO in names else None  # whose class takes a while to import
        self._send(ChildMessage.START, (stage.name, invocation, *hooks, info, logs.levels()))
        _came.update(filter(is_pythons, self._answer().split()))

    def call(self, value: Any, lineage: Lineage) -> Any:
        """Call the function for an item, or for a stream, and return its result."""
        return self._ask(ChildMessage.CALL, value, lineage)

    def call_all(self, calls: Sequence[Any], lineages: Sequence[Lineage]) -> int:
        """Send calls, which `answer_all` answers. Return the number of bytes."""
        assert self._results is not None
        self._results.clear()
        self._read_to = SharedResults.BEGIN
        sent = together(calls, lineages)
        self._send_message(sent)
        return sum(map(len, sent))

    def is_slow(self, seconds: float) -> bool:
        """Return True if there is no answer after so many seconds."""
        assert self._link is not None
        return not self._link.has_message(seconds)

    def take_back(self) -> tuple[int, Iterator[Outcome]]:
        """Take back the last ones of the calls: those that have not begun. Return their number, and what became of
        the first ones."""
        assert self._orders is not None
        try:
            self._orders.send(b"?")
            answer = self._orders.recv(TAKEN.size, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < TAKEN.size:
            return 0, iter(())  # it has died, as `answer_all` says
        taken, end = TAKEN.unpack(answer)
        return taken, self._results_to(end)

    def answer_all(self) -> tuple[Iterator[Outcome], Outcome | None]:
        """Return what became of the calls that nobody was told of, but for the last one, and what became of that;
        None: there is no such call. Calls that are left have not begun."""
        assert self._results is not None
        last = attempt(self._answer)
        end = self._results.end()
        self.answered += end
        self.seconds = self._results.seconds()
        return self._results_to(end), None if last[0] and last[1] is DONE else last

    def _results_to(self, end: int) -> Iterator[Outcome]:
        assert self._results is not None
        begin, self._read_to = self._read_to, end
        return self._results.read(begin, end)

    def begin(self, value: Any, lineage: Lineage) -> None:
        """Begin to iterate what the function gives for an item, or for a stream."""
        self._ask(ChildMessage.BEGIN, value, lineage)

    def next(self) -> Any:
        """The next item, or ENDED."""
        self._send(ChildMessage.NEXT)
        return self._answer()

    def finish(self) -> None:
        """Run `on_done` there. Raises what that raises."""
        self._send(ChildMessage.FINISH)
        self._answer()

    def terminate(self) -> None:
        """Ask it to end, from any thread; what waits for it then raises. `reap` has to follow."""
        with self._lock:
            self.ended = True
            if self._process is not None and self._process.returncode is None:
                self._process.terminate()

    def kill(self) -> None:
        """End it at once, from any thread."""
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()

    def has_ended(self) -> bool:
        """True once the process has died or was told to end: it will answer no call."""
        if self._process is not None and self._process.poll() is not None:
            self.ended = True
        return self.ended

    def reap(self) -> None:
        """Wait until it has ended; kill it if that takes too long."""
        for each in (self._link, self._orders, self._results):
            if each is not None:
                each.close()
        if self._process is not None:
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.close()

    # -- talking

    def _ask(self, kind: ChildMessage, value: Any, lineage: Lineage) -> Any:
        """Call the function; if it is given a stream, the items that it asks for are sent one by one."""
        if not isinstance(value, SyncItems):
            self._send(kind, value, lineage)
            return self._answer()
        self._stream = value
        self._send(kind, STREAM, lineage)
        return self._answer()

    def _send(self, kind: ChildMessage, value: Any = None, lineage: Lineage = ()) -> None:
        self._send_message(message(kind, value, lineage))

    def _send_message(self, sent: list[bytes | memoryview]) -> None:
        assert self._link is not None
        try:
            self._link.send(sent)
        except OSError:
            raise self._died() from None

    def _answer(self) -> Any:
        while True:
            kind, value = self._receive()
            match kind:
                case ChildMessage.VALUE:
                    return value
                case ChildMessage.DONE:
                    return DONE
                case ChildMessage.ENDED:
                    return ENDED
                case ChildMessage.WANTED:
                    self._feed()
                case ChildMessage.CONFINED:
                    raise PipelineError(f"the process of stage {self._stage.name!r} {value}")
                case _:
                    raise rebuilt(value)

    def _feed(self) -> None:
        """The child's join takes its next item."""
        assert self._stream is not None
        try:
            item = next_or_end(self._stream)
        except Exception:  # the stream itself failed: the child ends, and this process raises the error
            self._send(ChildMessage.BROKEN)
            with contextlib.suppress(Exception):
                self._answer()
            raise
        if item is ENDED:
            self._send(ChildMessage.ENDED)
        else:
            self._send(ChildMessage.VALUE, item)

    def _receive(self) -> tuple[ChildMessage, Any]:
        assert self._link is not None
        try:
            received = self._link.receive()
        except (EOFError, OSError):
            raise self._died() from None
        self.answered = received.size if isinstance(received, Incoming) else len(received)
        try:
            kind, value, _ = load(received)
        except Exception:
            if isinstance(received, Incoming) and received.broken:
                raise self._died() from None
            raise
        return ChildMessage(kind), value

    def _died(self) -> PipelineError:
        assert self._process is not None
        self.ended = True
        try:
            code: int | None = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            code = None
        return PipelineError(f"the process of stage {self._stage.name!r} ended during a call (exit code {code})")


def _modules() -> list[str]:
    """Modules that a child imports before its first item."""
    found = [main.__module__, quick_end.__name__, "multiprocessing"]  # for its name in logs
    found += tuple(_came)  # at once: threads add to it
    return [*found, "cloudpickle"] if "cloudpickle" in sys.modules else found


_came: set[str] = set()
"""Modules of Python's own that processes have imported for their functions, and this program too: the fork server
imports them for the next ones."""


async def _gone(process: Process, reaped: asyncio.Future[Any]) -> None:
    """Return when a process that was told to end has ended and `reaped` is done; what it runs may not heed that.

    It is waited for also when this is cancelled, because whoever ends the event loop ends the program.
    """
    cancelled = False
    while not reaped.done():
        try:
            done, _ = await asyncio.wait([reaped], timeout=GRACE)
            if not done:
                process.kill()
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


class ProcessRunner(ThreadRunner):
    """Runs plain functions in a process of its own, with a thread that waits for it."""

    def __init__(self, stage: FunctionStage, index: int) -> None:
        super().__init__(stage, index)
        self._process = Process(stage, self.info)
        self.ready = self._replace
        self._ending: asyncio.Future[Any] | None = None
        """Done when the process has ended that has nothing else to do."""

    def _made_ahead(self, *args: Any) -> Ahead:
        return ProcessAhead(lambda: self._process, *args)

    async def start(self) -> None:
        await self._thread.call(self._process.start)
        self._started = True
        self._call = self._call_there

    def _call_there(self, value: Any, lineage: Lineage) -> Any:
        return self._process.call(value, lineage)

    def _keep(self, value: Any, result: Any) -> Any:
        self._variables = self._thread.variables()  # those of the call are there
        return super()._keep(value, result)

    async def close(self, *, hurry: bool) -> None:
        process, thread = self._process, self._thread
        finished = False
        try:
            if self._started and not hurry and not process.ended:
                await thread.call(process.finish)
                finished = True
        finally:
            process.terminate()
            ended = thread.submit(process.reap)
            thread.close()
            if finished:
                self._ending = ended
            else:
                await _gone(process, ended)

    def left(self) -> list[Coroutine[Any, Any, None]]:
        return [] if self._ending is None else [_gone(self._process, self._ending)]

    async def _invoke(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self._thread.call(function, *args)
        except asyncio.CancelledError:
            self._given_up()
            raise

    def _given_up(self) -> None:
        self._process.terminate()  # the call took too long, or the run is over

    async def _replace(self) -> None:
        """Another process in place of one that has died, or was ended because it took too long."""
        if not self._process.has_ended():
            return
        await _gone(self._process, self._thread.submit(self._process.reap))
        self._process = Process(self.stage, self.info)
        await self._thread.call(self._process.start)

    async def _begin(self, function: Callable[..., Any], *args: Any) -> AsyncGenerator[Any, None]:
        await self._invoke(lambda: self._process.begin(*args))
        return self._remaining()

    async def _remaining(self) -> AsyncGenerator[Any, None]:
        while (item := await self._invoke(self._process.next)) is not ENDED:
            yield item
