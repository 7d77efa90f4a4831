"""The notes that a server keeps for probes: see `atasks_cli.health`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from atasks_cli.health import PERIOD, Note, folder

__all__ = ["keep_notes"]

logger = logging.getLogger("atasks.cli")


@contextlib.asynccontextmanager
async def keep_notes(look: Callable[[], Note], where: Path | None = None) -> AsyncIterator[None]:
    """Note once a second what `look` gives, by the event loop itself, until the block is left.

    A folder that cannot be written to is said once, at INFO: a server without probes needs none.
    """
    path = (where or folder()) / f"{os.getpid()}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, look())
    except OSError as error:
        logger.info("atasks health will not see this server: %s", error)
        yield
        return
    task = asyncio.create_task(_keep(path, look), name="atasks notes")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(OSError):
            path.unlink()


async def _keep(path: Path, look: Callable[[], Note]) -> None:
    while True:
        await asyncio.sleep(PERIOD)
        with contextlib.suppress(OSError):  # a full disk: the note grows old, and the probe says so
            _write(path, look())


def _write(path: Path, note: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(note | {"pid": os.getpid(), "at": time.monotonic()}))
    new.replace(path)
