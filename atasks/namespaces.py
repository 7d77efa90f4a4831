"""The namespaces of this process: each has one registry, one router, one codec and its transports."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from atasks.registry import Manager, RegistryItem

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from atasks.blocks import Block
    from atasks.codecs.base import Codec
    from atasks.lazy import LazyConnection
    from atasks.middleware import AroundCalls, AroundRuns
    from atasks.router import Router
    from atasks.transport.contract import Transport

    class Namespace(RegistryItem):
        """One namespace. `getattr(namespace, name, None)` reads what may not be there yet: a router registers all
        of it but `transport`."""

        router: Router
        registry: Manager
        codec: Codec | None
        """The one that was constructed last; None: see `get_codec`."""
        transport: Transport | None
        """The one that was constructed last."""
        connected: dict[asyncio.AbstractEventLoop, list[Block]]
        """Event loop -> the blocks that were entered there and not left, the oldest first."""
        lazy: LazyConnection | None
        """The connection that `connect_lazily` has announced."""
        after_commit: Callable[[Callable[[], None]], object] | None
        """Runs a function after a commit."""
        around_calls: AroundCalls | None
        """The middlewares of `use` around the calls that are made here."""
        around_runs: AroundRuns | None
        """Those around runs."""


__all__ = ["namespace_item", "namespaces"]

namespaces = Manager("namespaces", unite=True)
"""Name of a namespace -> its `Namespace`."""


def namespace_item(name: str) -> Namespace:
    """Return the item of the namespace; an unknown one is made."""
    return cast("Namespace", namespaces.get(name))
