"""Calls from code without an event loop: a script, a view, a thread.

They run in one event loop per process, in a thread of its own that lives while a `connect_sync` or a call needs
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Unpack

from atasks.caller.background import (
    _background_loop,
    _run,
    refuse_in_loop,
)
from atasks.connection import connect
from atasks.options import ConnectOptions
from atasks.router import get_router

if TYPE_CHECKING:
    from atasks.transport.contract import Transport

__all__ = ["connect_sync"]


@contextmanager
def connect_sync(
    url: str | Sequence[str] | Transport = "loopback:",
    *,
    namespace: str = "default",
    **options: Unpack[ConnectOptions],
) -> Iterator[Transport]:
    """Call atasks of the namespace by `.sync` over this transport, from every thread, inside this block.

    As `atasks.connect`, for code without an event loop: a nested one shadows the outer one in this thread, and a
    thread that is in none uses the one that was entered first; if there is no such block, the oldest of the
    `connect` and `serve` blocks of this process. A process that is forked inside the block has to enter one of its
    own.

    Args:
        url: As for `connect`.
        namespace: The namespace whose atasks are called here.
        **options: Those of the transport's class, as for `connect`.

    Raises:
        RuntimeError: An event loop runs in this thread.
        AtasksError: Each of those that `connect` raises.

    Guarantees:
        When the block ends calls that are pending end in `CallConnectionLost`. A block that is still open when the
        program ends is left then, within 7 seconds, and the exit code stays what it is.

    Example:
        ```python
        import atasks
        from atasks import atask

        @atask
        async def add(a: int, b: int) -> int:
            return a + b

        with atasks.connect_sync("loopback:"):
            print(add.sync(1, 2))  # 3
        ```
    """
    refuse_in_loop("atasks.connect_sync()", "`async with atasks.connect(...)`")
    with _background_loop() as background:
        manager = connect(url, namespace=namespace, **options)
        transport = _run(background.loop, manager.__aenter__)
        background.open.append(manager)
        blocks = get_router(namespace)._connected[background.loop]
        block = next(block for block in blocks if block.transport is transport)
        block.hold()  # the context in which it was entered was a copy of this thread's
        try:
            yield transport
        finally:
            if not background.over:  # else the interpreter ends inside the block, or this is a fork of the process
                block.release()
                if background.take_back(manager):
                    _run(background.loop, lambda: manager.__aexit__(None, None, None))
