"""Forked children in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from atasks.fork_server.forked import CODE_PATIENCE, PATIENCE, Forked
from atasks.fork_server.server import ask

__all__ = ["ended", "fork"]


async def fork(
    modules: Sequence[str], text: str, words: Sequence[str], descriptors: Sequence[int], *, session: bool = False
) -> Forked | None:
    """Return a child that the server of this program has forked, with the arguments of `ask`; None: it has to be
    started in another way. Raises OSError if too many files are open."""
    child = ask(modules, text, words, descriptors, session=session)
    if child is None:
        return None
    try:
        await _readable(child.birth.fileno(), PATIENCE)
        return child if child.begin(0) else None
    except BaseException:
        child.close()
        raise


async def ended(child: Forked) -> int:
    """Return the exit code of the child when it has ended."""
    if child.returncode is not None:
        return child.returncode
    await _readable(child.fileno())
    await _readable(child.birth.fileno(), CODE_PATIENCE)
    return child.code()


async def _readable(descriptor: int, patience: float | None = None) -> None:
    """Return when there is something to read, and after so many seconds."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def told() -> None:
        loop.remove_reader(descriptor)
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, told)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await ready
    finally:
        loop.remove_reader(descriptor)
