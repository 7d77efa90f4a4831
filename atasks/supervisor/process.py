"""One worker process, as its supervisor sees it: started, ready, replaced, released, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from atasks import forks
from atasks.supervisor.running_calls import RunningCalls
from atasks.supervisor.tether import VARIABLE
from atasks.tracking import WorkerCounts, snapshots
from atasks.wire import counted

__all__ = ["Hooks", "WorkerProcess"]

LONGEST_LINE: Final = 2**20
"""Bytes after which a line is cut in two."""
NAMED_TASKS: Final = 10
"""Atasks whose calls a description names; it counts the calls of others."""


@dataclass(frozen=True)
class Hooks:
    """The functions that a supervisor is called back by. They are called in the event loop, and may not raise."""

    on_report: Callable[[int, str, list[Any]], None]
    """`(number, kind, values)`: what a process reports beyond what `WorkerProcess` keeps."""
    on_output: Callable[[int, bytes], None] | None
    """`(number, lines)`: what it writes to stderr, in whole lines. None: it shares this process's stderr."""
    on_end: Callable[[WorkerProcess], None]
    """Called when the process has ended, before whatever awaits `ended` goes on."""


class WorkerProcess:
    """A process of a supervisor, from its start to its end. `spawn` makes it."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        box: RunningCalls,
        channel: int,
        stderr: int | None,
        hooks: Hooks,
    ) -> None:
        """`channel` and `stderr` are file descriptors to read from."""
        loop = asyncio.get_running_loop()
        self.number = number
        self.pid = process.pid
        self.ready: asyncio.Future[bool] = loop.create_future()
        """True once it serves, False if it ended before."""
        self.retiring: asyncio.Future[str] = loop.create_future()
        """Why it wants to be replaced, once it does."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Result: the return code, as in `subprocess`, once the process is gone and all of its output has been
        read."""
        self.serves = ""
        """The worker's own words for the atasks and queues that it serves."""
        self.since = loop.time()
        """When it was started, and after that, when it became ready (event loop time)."""
        self.failure: tuple[str, int] | None = None
        """Why, by its own account, no process in its place could serve, and its exit code."""
        self.released = False
        self._process = process
        self._box = box
        self._hooks = hooks
        self._reports = _Lines(channel, self._take)
        self._output = _Lines(stderr, self._write) if stderr is not None else None
        self._await_end()

    @classmethod
    async def spawn(
        cls, command: Sequence[str], number: int, env: Mapping[str, str], hooks: Hooks
    ) -> WorkerProcess:
        """Start the command. Raises OSError if that cannot be."""
        box = RunningCalls()
        ours, theirs = socket.socketpair()
        stderr = os.dup(2)
        inherited = [theirs.fileno(), stderr, box.fd]
        pipe = os.pipe() if hooks.on_output is not None else None
        forks.withhold(ours.fileno())
        if pipe is not None:
            forks.withhold(pipe[0])
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=pipe[1] if pipe is not None else None,
                pass_fds=inherited,
                env={**env, VARIABLE: ":".join(map(str, (number, *inherited)))},
            )
        except BaseException:
            box.close()
            ours.close()
            if pipe is not None:
                os.close(pipe[0])
            raise
        finally:
            theirs.close()
            os.close(stderr)
            if pipe is not None:
                os.close(pipe[1])
        return cls(number, process, box, ours.detach(), pipe[0] if pipe is not None else None, hooks)

    # -- what it does

    @property
    def serving(self) -> bool:
        """The process is ready, and has not been told to drain."""
        return self.ready.done() and self.ready.result() and not self.released and not self.ended.done()

    @property
    def ran_calls(self) -> bool:
        """The process runs calls, or ran some when it ended."""
        return bool(self._box.read()[0])

    @property
    def counts(self) -> list[WorkerCounts]:
        """The counts of the process's workers so far, or until it ended."""
        return snapshots.read(self._box.table)

    def describe_calls(self) -> str:
        """The calls that it runs, or ran when it ended, for a line of the log."""
        calls, unnoted = self._box.read()
        if not calls:
            return "while it ran no call"
        by_task: dict[str, list[str]] = {}
        for call_id, name in calls:
            by_task.setdefault(name, []).append(call_id)
        shown = list(by_task.items())[:NAMED_TASKS]
        named = ", ".join(
            f"task {name!r} ({f'{len(ids)} calls, the latest' if len(ids) > 1 else 'call'} {ids[0]})"
            for name, ids in shown
        )
        total = len(calls) + unnoted
        more = total - sum(len(ids) for _, ids in shown)
        return f"while it ran {counted(total, 'call')}: {named}{f' and {more} more' * (more > 0)}"

    def describe_end(self) -> str:
        """Return the way in which the process ended, for a line of the log."""
        code = self.ended.result()
        if code >= 0:
            return f"exited with code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal
            return f"was killed by signal {-code}"

    def _take(self, lines: bytes) -> None:
        for line in lines.splitlines():
            if not line:  # the process asked whether its supervisor still lives
                continue
            kind, *values = json.loads(line)
            match kind:
                case "ready":
                    if not self.ready.done():
                        self.serves = values[0]
                        self.since = asyncio.get_running_loop().time()
                        self.ready.set_result(True)
                case "retire":
                    if not self.retiring.done():
                        self.retiring.set_result(values[0])
                case "failed":
                    self.failure = values[0], values[1]
                case _:
                    self._hooks.on_report(self.number, kind, values)

    def _write(self, lines: bytes) -> None:
        assert self._hooks.on_output is not None
        self._hooks.on_output(self.number, lines)

    def _await_end(self, cancelled: asyncio.Task[None] | None = None) -> None:
        """Hear of its end, again if what listens is cancelled: `asyncio.run` cancels every task before it leaves
        the blocks that a program has left open, and they wait for `ended`."""
        if cancelled is None or cancelled.cancelled():
            self._ending = asyncio.create_task(self._end(), name=f"atasks worker {self.number}")
            self._ending.add_done_callback(self._await_end)

    async def _end(self) -> None:
        code = await self._process.wait()
        self._reports.close()
        if self._output is not None:
            self._output.close()
        if not self.ready.done():
            self.ready.set_result(False)
        self.ended.set_result(code)
        self._hooks.on_end(self)
        self._box.close()

    # -- what is done to it

    def release(self) -> None:
        """Have it drain and end. One that is not ready yet has nothing to drain, and is terminated."""
        if self.released or self.ended.done():
            return
        self.released = True
        self._reports.shut()
        if not self.ready.done():
            self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        # Not Process.send_signal: on some Pythons it takes the exit status away from whoever waits for it.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class _Lines:
    """Reads a file descriptor, and hands on whole lines, as many at once as have come."""

    def __init__(self, fd: int, receive: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._receive = receive
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """Read once from the pipe. Returns False if there is nothing more to read for now."""
        try:
            data = os.read(self._fd, 2**16)
        except BlockingIOError:
            return False
        except OSError:  # the process is gone, and left unread what was written to it
            data = b""
        if not data:
            self._loop.remove_reader(self._fd)
            return False
        whole, end, rest = (self._rest + data).rpartition(b"\n")
        if len(rest) > LONGEST_LINE:
            whole, end, rest = whole + end + rest, b"\n", b""
        self._rest = rest
        if end:
            self._receive(whole + end)
        return True

    def shut(self) -> None:
        """Tell the process, which reads at the other end, that nothing will come."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._fd)) as other:
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Read what is there. What others that have inherited the other end may still write is not waited for."""
        while self._read():
            pass
        self._loop.remove_reader(self._fd)
        if self._rest:
            self._receive(self._rest + b"\n")
        os.close(self._fd)
