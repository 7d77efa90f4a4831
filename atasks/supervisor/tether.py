"""The tether of a worker process to its supervisor: the worker reports over it, and learns that it should drain.

    tether = Tether.inherited()          # None in a process that no supervisor started
    async with atasks.serve(url) as worker:
        if tether is not None:
            tether.ready("3 atasks")     # the supervisor waits for it
            await tether.released()      # then leave: the block drains

It is one socket. The worker writes messages; the supervisor writes nothing, and shuts its half to have the worker
drain. So a supervisor that dies, in whatever way, releases its workers too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from atasks import forks
from atasks.outlast import shield
from atasks.supervisor import running_calls

__all__ = ["VARIABLE", "Tether"]

VARIABLE: Final = "ATASKS_TETHER"
"""The environment variable in which a supervisor tells a worker process of its tether."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at whether the supervisor of a released process is still there."""


class Tether:
    """The worker's end. Reports never raise: a supervisor that is gone needs none."""

    def __init__(self, number: int, channel: int, stderr: int) -> None:
        self.number = number
        """Which worker of its supervisor this process is: 1, 2, ..."""
        self._stderr = stderr
        self._channel = channel
        self._released: asyncio.Future[None] | None = None

    @classmethod
    def inherited(cls) -> Tether | None:
        """The tether of this process, once: processes that it starts do not have it, nor does a second call.

        From then on the workers of this process note their calls for the supervisor.
        """
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        number, channel, stderr, box = map(int, text.split(":"))
        for fd in (channel, stderr):
            os.set_inheritable(fd, False)
        forks.withhold(channel)
        running_calls.install(box)
        os.close(box)
        _name_process(f"atasks:{number}")
        return cls(number, channel, stderr)

    # -- reports

    def ready(self, what: str) -> None:
        """This process serves: `what`, for people to read."""
        self.report("ready", what)

    def failed(self, message: str, code: int) -> None:
        """This process will end with `code`, and so would any other in its place, for the reason in `message`."""
        self.report("failed", message, code)

    def retire(self, reason: str) -> None:
        """Have this process replaced; it goes on serving until it is released."""
        self.report("retire", reason)

    def report(self, kind: str, *values: Any) -> None:
        """Tell the supervisor something else, which its `on_report` gets."""
        with contextlib.suppress(OSError):
            self._send(json.dumps([kind, *values]).encode() + b"\n")

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._channel, data) :]

    # -- the end

    def on_release(self, callback: Callable[[], object]) -> None:
        """Call it in the running event loop, once, when this process should drain and end."""
        self._watch().add_done_callback(lambda _: callback())

    async def released(self) -> None:
        """Return when this process should drain and end."""
        await shield(self._watch())

    @property
    def is_released(self) -> bool:
        """True if this process should drain and end, as far as its event loop has seen."""
        return self._released is not None and self._released.done()

    def end_with_supervisor(self, seconds: float) -> None:
        """See to it that this process ends within so many seconds after its supervisor is gone, although its event
        loop may be blocked then."""
        threading.Thread(
            target=_end_after, args=(self._channel, seconds), name="atasks tether", daemon=True
        ).start()

    def _watch(self) -> asyncio.Future[None]:
        if self._released is None:
            loop = asyncio.get_running_loop()
            self._released = loop.create_future()
            loop.add_reader(self._channel, self._read, loop, self._released)
        return self._released

    def _read(self, loop: asyncio.AbstractEventLoop, released: asyncio.Future[None]) -> None:
        loop.remove_reader(self._channel)  # nothing but the end ever comes
        try:
            self._send(b"\n")
        except OSError:  # the supervisor is gone: writing to the pipe that stderr was would raise
            os.dup2(self._stderr, 2)
        released.set_result(None)


def _end_after(channel: int, seconds: float) -> None:
    """Wait until the other end of the tether is gone, and so much longer."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.poll()  # it returns when this process is released, or the supervisor gone
    with contextlib.suppress(OSError):
        while True:
            os.write(channel, b"\n")
            time.sleep(LOOK_SECONDS)
    time.sleep(seconds)
    os._exit(1)


def _name_process(name: str) -> None:
    """Have `ps` and `top` show the name, where that takes no more than a write to a file: on Linux."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)
