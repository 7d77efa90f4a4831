"""The queues and broadcasts of atasks 0.0.3, as thin forms of submitted calls and of events."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from atasks.options import validate_queue
from atasks.transport.subscription import Subscription

if TYPE_CHECKING:
    from atasks.activation import Activation
    from atasks.registry import Manager, RegistryItem
    from atasks.submitted.handle import Handle
    from atasks.transport.contract import Transport
    from atasks.worker.worker import Worker

__all__ = ["OriginalEvents"]

MAX_NAME: Final = 100
"""Characters of a queue, or of an event: the hash stands in the place of a longer one."""

Publish = Callable[..., Coroutine[Any, Any, None]]


class OriginalEvents:
    """The methods of a router for `atask_queue` and `atask_broadcast`, as programs for atasks 0.0.3 use them.

    A call of an `atask_queue` is a submitted call whose result nobody keeps, on a queue of its own, which workers
    serve after `activate_queue`. A call of an `atask_broadcast` publishes an event, which every worker handles
    after `activate_broadcast`. New programs have `submit` and `@event`.
    """

    if TYPE_CHECKING:
        registry: Manager
        _activation: Activation

        def register_atask(
            self, name: str, coro: Callable[..., Any], options: Mapping[str, Any] | None = None
        ) -> Any: ...
        async def submit(self, name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]: ...
        async def publish(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...
        def transport(self) -> Transport: ...
        async def serve_on(self, transport: Transport, queues: list[str]) -> Worker: ...

    def register_queue_task(
        self, name: str, coro: Callable[..., Any], options: Mapping[str, Any] | None = None
    ) -> Publish:
        """Register the handler of a queue, and return the function that puts calls into it: each call of that one
        returns None when the call is safe. Raises as `register_atask` does."""
        task = self.register_atask(name, coro, {**(options or {}), "queue": _short("queue", name), "keep": 0})
        vars(self._item(name))["on_demand"] = True

        @functools.wraps(coro)
        async def put(*args: Any, **kwargs: Any) -> None:
            await task.submit(*args, **kwargs)

        return put

    def register_broadcast_task(
        self, name: str, coro: Callable[..., Any], options: Mapping[str, Any] | None = None
    ) -> Publish:
        """Register the handler of a broadcast, and return the function that publishes it: each call of that one
        returns None when the broker has it. Raises as `register_atask` does."""
        task = self.register_atask(name, coro, options)

        @functools.wraps(coro)
        async def publish(*args: Any, **kwargs: Any) -> None:
            task._check_arguments(*args, **kwargs)
            await self.send_broadcast(name, *args, **kwargs)

        return publish

    async def send_event(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Put a call into the queue of that name. Raises as `ATask.submit` does."""
        item = self.registry.get(name)
        if item is None:
            raise LookupError(f"no queue {name!r} is known here: import the module with its @atask_queue")
        await item.task.submit(*args, **kwargs)

    async def send_broadcast(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Publish to all who have activated the broadcast of that name. Raises as awaiting an event does."""
        await self.publish(_short("broadcast", name), args, kwargs)

    async def activate_queue(self, name: str, transport: Transport | None = None) -> None:
        """Take calls out of the queue of that name, as one of those who compete for them.

        `transport`: None: that of the namespace. Raises LookupError for a name that no `atask_queue` has here,
        NotConnected, a TransportError.
        """
        item = self._item(name)
        vars(item)["on_demand"] = False
        await self.serve_on(transport or self._serving_transport(), [item.options.queue])

    async def deactivate_queue(self, name: str, transport: Transport | None = None) -> None:
        """Take no more calls out of the queue of that name; those that have begun go on."""
        item = self._item(name)
        vars(item)["on_demand"] = True
        transport = transport or self._serving_transport()
        if transport.serves is not None:
            await transport.serve_no_more(transport.serves, item.options.queue)

    async def activate_broadcast(self, name: str, transport: Transport | None = None) -> None:
        """Handle what is published under that name from now on, whoever else does so too. Raises as
        `activate_queue` does."""
        item = self._item(name)
        event = _short("broadcast", name)
        vars(item)["subscription"] = Subscription.of(event, name, None, item.options)
        await self.serve_on(transport or self._serving_transport(), [])

    async def deactivate_broadcast(self, name: str, transport: Transport | None = None) -> None:
        """Handle no more of what is published under that name."""
        vars(self._item(name))["subscription"] = None
        transport = transport or self._serving_transport()
        if transport.serves is not None:
            await transport.serve_also(transport.serves, [])

    def _item(self, name: str) -> RegistryItem:
        item = self.registry.get(name)
        if item is None:
            raise LookupError(f"{name!r} is not known here: import the module that defines it first")
        return item

    def _serving_transport(self) -> Transport:
        worker = self._activation.worker
        return self.transport() if worker is None else worker.transport


def _short(kind: str, name: str) -> str:
    full = f"{kind}:{name}"
    if len(full) > MAX_NAME:
        full = f"{kind}:{blake2b(full.encode(), digest_size=16).hexdigest()}"
    return validate_queue(full)
