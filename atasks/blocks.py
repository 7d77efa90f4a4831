"""The `connect` and `serve` blocks that code is in: they say which transport an await goes over."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from atasks.transport.contract import Transport

__all__ = ["Block", "default_of", "entered_first", "handed_over", "innermost", "settle", "threads"]

_moments: Final = itertools.count(1)
threads: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()
"""The thread of each event loop in which a block was entered."""
handed_over: Final[set[asyncio.Task[None]]] = set()
"""The tasks that send what nobody waits for, as `submit.soon` does."""
SETTLE_SECONDS: Final = 5.0
"""Seconds that a block which is left waits for those."""


class Block:
    """One `connect` or `serve` block of an event loop, until it is left.

    Code is in the blocks that its context holds: those that it has entered, and those that the code was in which
    started its task. A block that was left counts no more, wherever it was left, and whatever still holds it.
    """

    __slots__ = ("began", "ended", "loop", "namespace", "outer", "pid", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport: Transport | None = transport
        """None: it was left."""
        self.namespace = transport.namespace
        self.loop = asyncio.get_running_loop()
        threads[self.loop] = threading.get_ident()
        self.pid = os.getpid()
        self.outer = innermost.get()
        """The block around it, of any namespace and event loop; it may have been left before this one."""
        self.began = next(_moments)
        self.ended = 0

    def hold(self) -> None:
        """The current context is in it from now on."""
        innermost.set(self)

    def release(self) -> None:
        """The current context is in it no more, but in the block around it. Does nothing in another context."""
        if innermost.get() is self:
            innermost.set(self.outer)

    def leave(self) -> None:
        """Nothing is in it any more, in whatever context."""
        self.release()
        self.transport = None
        self.ended = next(_moments)
        # A context may keep this block alive for long: it must not keep all earlier blocks alive too.
        self.outer = next((block for block in _around(self.outer) if block.transport is not None), None)

    def find(self, namespace: str, loop: asyncio.AbstractEventLoop | None = None) -> Block | None:
        """This block, or the nearest one around it, if it is open and of the namespace (and of the event loop)."""
        block: Block | None = self
        while block is not None:  # not a generator, which would be slower: every call in a block comes this way
            if block.transport is not None and block.namespace == namespace and loop in (None, block.loop):
                return block
            block = block.outer
        return None


innermost: ContextVar[Block | None] = ContextVar("atasks.block", default=None)
"""The block that this context is in; those around it are its `outer` ones."""


def default_of(blocks: Sequence[Block], here: Block | None) -> Transport | None:
    """Choose the transport for code that is in no block: the oldest of the open blocks of its event loop.

    Blocks come oldest first. Code whose own block (`here`, or one around it) was left does not go over to a block
    that somebody else entered in the meantime.
    """
    for block in blocks:
        if not any(left.began < block.began < left.ended for left in _around(here)):
            return block.transport
    return None


def entered_first(connected: Mapping[asyncio.AbstractEventLoop, Sequence[Block]]) -> Block | None:
    """The block that a thread uses which is in none: of those of event loops that run in this process, the one
    that was entered first."""
    usable = [
        block
        for loop, blocks in list(connected.items())  # a copy: other threads may enter and leave blocks meanwhile
        for block in list(blocks)
        if block.pid == os.getpid() and loop.is_running()
    ]
    return min(usable, key=lambda block: block.began, default=None)


async def settle() -> None:
    """Return when what was handed over to this event loop has ended, or after 5 s."""
    loop = asyncio.get_running_loop()
    mine = {task for task in list(handed_over) if task.get_loop() is loop}
    if mine:
        await asyncio.wait(mine, timeout=SETTLE_SECONDS)


def _around(block: Block | None) -> Iterator[Block]:
    """The block and those around it, from within."""
    while block is not None:
        yield block
        block = block.outer
