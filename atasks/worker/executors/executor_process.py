"""One process that runs blocking functions."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from atasks import forks, interpreters, logs, modules, process_setup
from atasks.codecs.base import Codec
from atasks.codecs.cloudpickle import dumps
from atasks.errors import TransportError
from atasks.fork_server.forked import Forked
from atasks.fork_server.in_loop import ended, fork
from atasks.outlast import shield
from atasks.progress import Progress
from atasks.wire import Reply, Report
from atasks.worker.executors.child import serve
from atasks.worker.executors.frames import HEADER, READY, ProcessRequest, decode_answer, frame

if TYPE_CHECKING:
    from atasks.middleware import AroundRuns

__all__ = ["ExecutorProcess", "Lost"]

# A fresh interpreter, because a fork would copy the worker's connections, locks and threads. The first thing that
# it reads makes its imports work as they do here. The second one prepares it, because the others import modules.
# What atasks imports stays: the garbage collector need not look through it.
_PROGRAM: Final = """\
import gc, pickle, socket, sys
collects = gc.isenabled()
gc.disable()
channel = socket.socket(fileno=int(sys.argv[1]))
stream = channel.makefile("rb")
sys.path[:], sys.argv[:] = pickle.load(stream)
from atasks.worker.executors.child import prepare, serve
gc.freeze()
if collects:
    gc.enable()
prepare(channel, pickle.load(stream))
serve(channel, stream, pickle.load(stream), pickle.load(stream), pickle.load(stream))
"""

_MODULES: Final = [serve.__module__, "multiprocessing"]
"""Modules that it imports in any case."""
LEAVE_PATIENCE: Final = 2.0
"""Seconds that an idle process gets to end by itself."""


def _pickled(around: AroundRuns | None) -> bytes:
    try:
        return dumps(around)
    except Exception as error:
        raise TransportError(
            f"a middleware cannot be pickled for the processes of executor='process' ({type(error).__name__}): "
            "give it a __getstate__, or make what cannot travel when it is first needed"
        ) from error


async def _start(channel: int) -> Process | Forked:
    """A process that leads a session, so that what a function starts can be ended with it."""
    forked = await fork(_MODULES, _PROGRAM, [], [channel], session=True)
    if forked is not None:
        return forked
    command = [*interpreters.command(), "-c", _PROGRAM, str(channel)]
    return await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, pass_fds=[channel], start_new_session=True
    )


class Lost(Exception):
    """The process has died. `str()` of it says how."""


class ExecutorProcess:
    """A process that runs one call at a time."""

    def __init__(
        self, process: Process | Forked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.ended = asyncio.create_task(self._watch(), name="atasks process")
        """Done when it has ended."""

    @classmethod
    async def start(
        cls, codec: Codec, around: AroundRuns | None = None, setup: str | None = None
    ) -> ExecutorProcess:
        """A process that is ready, with copies of the codec and of the middlewares. Raises `Lost` if it ends
        before it is, and TransportError in a process that imports its modules, for a middleware that cannot be
        pickled, and if `setup` fails, which it calls first (None: what prepared this process)."""
        if modules.is_importing():
            raise TransportError(modules.UNGUARDED)
        first = pickle.dumps((sys.path, sys.argv)) + pickle.dumps(setup or process_setup.remembered())
        hello = first + pickle.dumps(logs.levels()) + dumps(codec) + _pickled(around)
        ours, theirs = socket.socketpair()
        forks.withhold(ours.fileno())
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                process = await _start(theirs.fileno())
            except BaseException:
                writer.transport.abort()
                raise
        started = cls(process, reader, writer)
        try:
            await started._say(hello)
            answer = await started._hear()
            if answer != READY:
                raise TransportError(answer.decode())
        except BaseException:
            started.kill()
            raise
        return started

    @property
    def alive(self) -> bool:
        """The process can take a call."""
        return not self.ended.done() and not self._writer.is_closing()

    async def ask(self, request: ProcessRequest, tell: Callable[[Progress], None]) -> Reply:
        """Send the request and return the reply; `tell` gets what the call reports until then. Raises `Lost` if
        the process dies first. If this is cancelled, `kill` the process: it still runs the call."""
        await self._say(frame(request))
        while isinstance(answer := decode_answer(await self._hear()), Report):
            if answer.id == request.call.id:  # else a thread that an earlier call has left says so
                tell(Progress(answer.done, answer.total, answer.note))
        return answer

    def kill(self) -> None:
        """End it now, with all that it started."""
        if self._process.returncode is None:
            self._kill_group()
        self._writer.transport.abort()

    async def leave(self) -> None:
        """End it, which is idle, and return when it has ended."""
        self._writer.close()
        await asyncio.wait([self.ended], timeout=LEAVE_PATIENCE)
        self.kill()
        await shield(self.ended)

    async def _say(self, content: bytes) -> None:
        try:
            self._writer.write(content)
            await self._writer.drain()
        except ConnectionError:
            raise await self._lost() from None

    async def _hear(self) -> bytes:
        try:
            header = await self._reader.readexactly(HEADER.size)
            return await self._reader.readexactly(*HEADER.unpack(header))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._lost() from None

    async def _lost(self) -> Lost:
        self.kill()  # if the process still lives, it has closed its channel
        await shield(self.ended)
        code = self._process.returncode
        assert code is not None
        if code >= 0:
            return Lost(f"exit code {code}")
        try:
            return Lost(signal.Signals(-code).name)
        except ValueError:
            return Lost(f"signal {-code}")

    async def _watch(self) -> None:
        """Return when it has ended. Its channel may stay open, in a process that it has forked."""
        await (ended(self._process) if isinstance(self._process, Forked) else self._process.wait())
        self._kill_group()  # so that nothing of it stays behind; while some of it lives, the number is not reused
        self._writer.transport.abort()
        if isinstance(self._process, Forked):
            self._process.close()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # there is nobody left in it; macOS: but the dead
            os.killpg(self._process.pid, signal.SIGKILL)
