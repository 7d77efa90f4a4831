"""Processes that belong to a stage's workers, one each."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from atasks import forks, interpreters, logs, modules, process_setup
from atasks.errors import PipelineError
from atasks.pipeline.flow.channel import Lineage
from atasks.pipeline.flow.child import GRACE, STREAM, ChildLink, ChildMessage, Incoming, load, message
from atasks.pipeline.flow.invocation import WorkerInfo
from atasks.pipeline.flow.items import SyncItems
from atasks.pipeline.flow.pickling import to_bytes
from atasks.pipeline.flow.raised import rebuilt
from atasks.pipeline.flow.runners import ENDED, ThreadRunner, next_or_end

if TYPE_CHECKING:
    from atasks.pipeline.stages.functions import FunctionStage

__all__ = ["Process", "ProcessRunner", "check_picklable"]

_COMMAND = (
    "import sys; fd, setup, end, *rest = sys.argv[1:]; "
    "sys.argv[:], sys.path[:] = rest[: int(end)], rest[int(end) :]; "
    "from atasks.pipeline.flow.child import main; main(int(fd), setup)"
)


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
        self._process: subprocess.Popen[bytes] | None = None
        self._link: ChildLink | None = None
        self._stream: SyncItems | None = None
        self._lock = threading.Lock()
        self.ended = False
        """True once the process has died or was told to end."""

    def start(self) -> None:
        """Start it, and run `on_start` there. Raises what that raises."""
        if modules.is_importing():
            raise PipelineError(modules.UNGUARDED)
        here, there = socket.socketpair()
        forks.withhold(here.fileno())
        setup = process_setup.remembered() or ""
        with there:
            argv = [str(word) for word in sys.argv]
            given = [str(there.fileno()), setup, str(len(argv)), *argv, *sys.path]
            command = [*interpreters.command(), "-c", _COMMAND, *given]
            with self._lock:
                if self.ended:
                    here.close()
                    raise PipelineError("the run is over")
                self._process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)
        self._link = ChildLink(here)
        stage = self._stage
        self._send(
            ChildMessage.START, (stage.invocation, stage.on_start, stage.on_done, self._info, logs.levels())
        )
        self._answer()

    def call(self, value: Any, lineage: Lineage) -> Any:
        """Call the function for an item, or for a stream, and return its result."""
        return self._ask(ChildMessage.CALL, value, lineage)

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
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

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
        sent = message(kind, value, lineage)
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
                case ChildMessage.ENDED:
                    return ENDED
                case ChildMessage.WANTED:
                    self._feed()
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

    async def start(self) -> None:
        await self._thread.call(self._process.start)
        self._started = True
        self._call = self._call_there

    def _call_there(self, value: Any, lineage: Lineage) -> Any:
        return self._process.call(value, lineage)

    async def close(self, *, hurry: bool) -> None:
        process, thread = self._process, self._thread
        try:
            if self._started and not hurry and not process.ended:
                await thread.call(process.finish)
        finally:
            process.terminate()
            ended = thread.submit(process.reap)
            thread.close()
            await _gone(process, ended)

    async def _invoke(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self._thread.call(function, *args)
        except asyncio.CancelledError:
            self._given_up()
            raise

    def _call_once(self, value: Any, lineage: Lineage) -> Any:
        return self._process.call(value, lineage)

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
