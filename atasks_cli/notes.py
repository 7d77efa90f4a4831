"""The notes that a server keeps for probes: see `atasks_cli.health`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from atasks_cli.health import PERIOD, Note, folder

__all__ = ["keep_notes"]

logger = logging.getLogger("atasks.cli")


@contextlib.asynccontextmanager
async def keep_notes(look: Callable[[], Note]) -> AsyncIterator[None]:
    """Note once a second what `look` gives, by the event loop itself, until the block is left.

    A folder that cannot be written to is said once, at INFO: a server without probes needs none.
    """
    path = folder() / f"{os.getpid()}.json"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = stack.enter_context(_locked(path))
            _write(file, look())
        except OSError as error:
            logger.info("atasks health will not see this server: %s", error)
            yield
            return
        task = asyncio.create_task(_keep(file, look), name="atasks notes")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            with contextlib.suppress(OSError):
                path.unlink()


async def _keep(file: BinaryIO, look: Callable[[], Note]) -> None:
    while True:
        await asyncio.sleep(PERIOD)
        with contextlib.suppress(OSError):  # a full disk: the note grows old, and the probe says so
            _write(file, look())


def _locked(path: Path) -> BinaryIO:
    """The file, with a lock that ends with this process: by it a probe knows that the server lives, whatever
    process has its number later."""
    while True:
        file = path.open("ab", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # a probe has just removed it, as that of a process that had the number before


def _write(file: BinaryIO, note: Note) -> None:
    content = json.dumps(note | {"pid": os.getpid(), "at": time.monotonic()}).encode()
    os.truncate(file.fileno(), 0)
    file.write(content)
