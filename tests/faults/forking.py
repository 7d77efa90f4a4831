"""Atasks that fork. `python -m tests.faults.forking URL OPTIONS` serves them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import atasks
from atasks import atask, current_call

__all__ = ["NAMESPACE", "WAYS", "children_of", "fork_and_stay", "handlers", "pool_in", "terminate_child"]

NAMESPACE = "forking"
STAYS = 60.0
"""Seconds for which a child lives unless it is ended."""
FORK = multiprocessing.get_context("fork")


def _note(directory: str) -> None:
    (Path(directory) / f"child.{os.getpid()}").touch()


def _stay(directory: str) -> None:
    _note(directory)
    time.sleep(STAYS)


def _by_os(directory: str) -> None:
    if os.fork() == 0:
        _stay(directory)
        os._exit(0)


def _by_multiprocessing(directory: str) -> None:
    FORK.Process(target=_stay, args=(directory,)).start()


def _by_executor(directory: str) -> None:
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=FORK)
    pool.submit(_stay, directory)


def _by_subprocess(directory: str) -> None:
    process = subprocess.Popen(["sleep", str(STAYS)], close_fds=False)
    (Path(directory) / f"child.{process.pid}").touch()


def _by_forked_subprocess(directory: str) -> None:
    if os.fork() == 0:
        _by_subprocess(directory)
        _stay(directory)
        os._exit(0)


def _by_library(directory: str) -> None:
    """Fork as a library written in C does: Python does not know of it."""
    c = ctypes.PyDLL(None)
    child = c.fork()
    if child == 0:
        c.sleep(int(STAYS))
        os._exit(0)
    (Path(directory) / f"child.{child}").touch()


WAYS = {
    "os": _by_os,
    "multiprocessing": _by_multiprocessing,
    "executor": _by_executor,
    "subprocess": _by_subprocess,
    "both": _by_forked_subprocess,
    "library": _by_library,
}


def children_of(directory: Path) -> list[int]:
    """The processes that were started."""
    return sorted(int(mark.suffix[1:]) for mark in directory.glob("child.*"))


@atask(namespace=NAMESPACE)
async def fork_and_stay(directory: str, way: str) -> int | None:
    """Starts a child, and does not end; the second attempt returns at once."""
    attempt = current_call().attempt
    if attempt == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork while other threads run
            await asyncio.sleep(0)
            WAYS[way](directory)
        (Path(directory) / f"worker.{os.getpid()}").touch()
        await asyncio.Event().wait()
    return attempt


def _terminated() -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = FORK.Process(target=time.sleep, args=(STAYS,))
        process.start()
        process.terminate()
        process.join(5)
        code = process.exitcode
        process.kill()
    return code


def _busy_pool() -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.monotonic()
        with FORK.Pool(2) as pool:
            pool.apply_async(time.sleep, (STAYS,))
            time.sleep(0.2)
        return time.monotonic() - started


@atask(namespace=NAMESPACE)
async def terminate_child() -> int | None:
    """The exit code of a child that was terminated; None: it lived on."""
    return _terminated()


@atask(namespace=NAMESPACE, executor="thread")
def pool_in_thread() -> float:
    """For how many seconds a pool with a busy process was used and left."""
    return _busy_pool()


@atask(namespace=NAMESPACE, executor="process")
def pool_in_process() -> float:
    """Run the busy pool in a worker's process."""
    return _busy_pool()


pool_in = {"thread": pool_in_thread, "process": pool_in_process}


@atask(namespace=NAMESPACE, executor="thread")
def handlers() -> tuple[bool, int]:
    """Fork a child; tell if it ends at SIGTERM, and to which descriptor its signals are written."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.fork() == 0:
            default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            os.write(writing, json.dumps([default, signal.set_wakeup_fd(-1)]).encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        default, wakeup = json.load(file)
    os.wait()
    return default, wakeup


async def _serve(url: str, options: dict[str, Any]) -> None:
    async with atasks.serve(url, namespace=NAMESPACE, **options) as worker:
        await worker.wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], json.loads(sys.argv[2])))
