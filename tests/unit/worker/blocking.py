"""Blocking functions that processes can import, for tests/unit/worker/test_processes.py."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import atasks
from atasks import atask, current_call

NAMESPACE: Final = "tests.unit.worker.blocking"

in_process: Final = functools.partial(atask, namespace=NAMESPACE, executor="process")

tenant = atasks.carry(ContextVar[str]("tests.unit.worker.blocking.tenant"))


class Sized(Exception):
    """An exception with an argument that it needs and an attribute."""

    def __init__(self, size: int) -> None:
        super().__init__(f"size {size}")
        self.size = size


def note(file: str, text: object) -> None:
    with Path(file).open("a") as lines:
        lines.write(f"{text}\n")


@in_process
def collects() -> tuple[bool, bool]:
    return gc.isenabled(), gc.get_freeze_count() > 0


@in_process
def pid() -> int:
    return os.getpid()


@in_process
def meet(folder: str, count: int) -> int:
    """Return when `count` processes are here."""
    (Path(folder) / str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < count:
        time.sleep(0.005)
    return os.getpid()


@in_process
def look() -> dict[str, Any]:
    call = current_call()
    return {
        **{name: getattr(call, name) for name in call.__slots__},
        "tenant": tenant.get(None),
        "thread": threading.current_thread() is threading.main_thread(),
    }


@in_process
def fail(size: int) -> None:
    try:
        raise KeyError(size)
    except KeyError as error:
        raise Sized(size) from error


@in_process
def leave() -> None:
    sys.exit(4)


@in_process
def give_up() -> None:
    raise asyncio.CancelledError


@in_process
def spin(file: str, with_child: bool = False) -> None:
    """Run until it is killed, in a way that nothing else ends."""
    pids = [os.getpid()]
    if with_child:
        pids.append(subprocess.Popen(["sleep", "1000"]).pid)
    note(file, " ".join(map(str, pids)))
    while True:
        time.sleep(0.01)


@in_process
def spin_once(file: str) -> tuple[int, int | None]:
    """Run until it is killed, if it is the first one to note its process in the file."""
    note(file, os.getpid())
    while len(Path(file).read_text().split()) == 1:
        time.sleep(0.01)
    return os.getpid(), current_call().attempt


@in_process
def die(file: str, how: str, until_attempt: int = 1000) -> int:
    attempt = current_call().attempt
    assert attempt is not None
    note(file, attempt)
    if attempt >= until_attempt:
        return attempt
    if how == "segfault":
        ctypes.string_at(0)
    if how == "fork":
        forked = os.fork()
        if forked == 0:
            time.sleep(1000)  # and keep open what was inherited
        note(f"{file}.forked", forked)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


@in_process
def nap(seconds: float, fatal: bool) -> int:
    time.sleep(seconds)
    if fatal:
        os._exit(1)
    return 1


@in_process
def echo(value: Any) -> Any:
    return value


@in_process
def repeat(text: str, times: int) -> str:
    return text * times


@in_process
def lock() -> Any:
    return threading.Lock()


@in_process
def with_own_loop() -> int:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    return asyncio.run(main())


@in_process
def call_another() -> Any:
    return echo.sync(1)


@in_process
def connect_and_call_another() -> Any:
    with atasks.connect_sync("loopback:", namespace=NAMESPACE):
        return in_thread.sync(3), current_call().id


@atask(namespace=NAMESPACE, executor="thread")
def in_thread(n: int) -> int:
    return n + 1


@in_process
def signals() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    done = subprocess.run(
        [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


class Holder:
    @in_process
    @staticmethod
    def static(n: int) -> int:
        return n * 2


power = in_process(functools.partial(pow, 2), name="power")
factorial = in_process(math.factorial)


@in_process
def watches() -> None:
    """Try to watch a call, from a process."""
    with pid.watch.sync():
        pass


@in_process
def count(many: int) -> int:
    """Report often."""
    for done in range(many + 1):
        current_call().report(done, many, "counting")
    return many


@in_process
def wait_for(file: str) -> str:
    """Report twice at once, and then wait until the file is there."""
    current_call().report(1)
    current_call().report(2, 3, "waiting")
    while not Path(file).exists():
        time.sleep(0.005)
    return "done"


@in_process
def report_in_a_fork() -> int:
    """Report in a forked child, which has no worker, and return its exit code."""
    child = os.fork()
    if child == 0:
        current_call().report(1, 1, "from nobody")
        time.sleep(0.2)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@in_process
def report_and_die() -> int:
    """Die in the first attempt, when it has reported."""
    call = current_call()
    call.report(5, 10)
    time.sleep(0.3)
    if call.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return call.attempt or 0
