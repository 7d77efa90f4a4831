"""`@event` declares an event: who publishes it does not know who handles it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from atasks.caller.background import run_here
from atasks.definitions import _signature_check
from atasks.errors import RegisteringTwice
from atasks.functions import place, signature_of
from atasks.options import validate_queue
from atasks.router import get_router
from atasks.tasks import _default_name, atask
from atasks.transport.subscription import Subscription

if TYPE_CHECKING:
    from atasks.definitions import ATask
    from atasks.options import DecorationOptions
    from atasks.router import Router

__all__ = ["Event", "event"]

P = ParamSpec("P")
R = TypeVar("R")

MAX_NAME: Final = 100
"""Characters of the queue of a group: the names of event and group stand in it, or the hash of longer ones."""


class HandlerDecorator(Protocol[P]):
    """The decorator that `paid.on(...)` returns."""

    @overload
    def __call__(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> ATask[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, R], /) -> ATask[P, R]: ...


class Event(Generic[P]):
    """A declared event. Awaiting `paid(7)` publishes it, and `@paid.on(group=...)` makes an atask that handles it.

    The await returns when the broker, or the hub, has the event, and not when it was handled: nobody is told how
    that ends. An event that no group and no worker waits for is gone.
    """

    def __init__(self, function: Callable[P, Any], name: str, namespace: str) -> None:
        functools.update_wrapper(cast("Any", self), function, updated=())
        self.__name__: str
        self.__qualname__: str
        self.name = validate_queue(name, "the name of an event")
        """The name on the wire: module and qualified name, unless the declaration says otherwise."""
        self.namespace = validate_queue(namespace, "namespace")
        self._signature = signature_of(function)
        self._check_arguments = _signature_check(function)
        get_router(namespace)  # so that there is one

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, object, None]:
        """A coroutine that publishes the event, and returns when the broker has it.

        Guarantees: each group of handlers gets the event at least once from then on, whatever dies. If the await
        is cancelled or raises, it may have been published, or not. A second await publishes a second event.

        Raises TypeError at once if the arguments do not fit. The await raises EncodeError, PayloadTooLarge,
        NotConnected, NotSupported from a transport that moves no events, and CallConnectionLost if the connection
        was closed before the broker confirmed it.
        """
        self._check_arguments(*args, **kwargs)
        # By position where possible: a codec may decode positional arguments by their types.
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()  # those of the event count: a handler need not repeat them
        return get_router(self.namespace).publish(self.name, bound.args, bound.kwargs)

    def sync(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Publish the event from code without an event loop, and return when the broker has it.

        Args:
            *args: The arguments of the event's function.
            **kwargs: Those by keyword.

        Raises:
            CallError: The broker cannot be told, or does not take it.
            RuntimeError: An event loop runs in this thread: await the event there.
            NotConnected: There is no connection: open `atasks.connect_sync`.
        """
        run_here(get_router(self.namespace), f"{self.name}.sync()", "`await` it", lambda: self(*args, **kwargs))

    @overload
    def on(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> ATask[P, R]: ...
    @overload
    def on(self, handler: Callable[P, R], /) -> ATask[P, R]: ...
    @overload
    def on(
        self,
        handler: None = None,
        /,
        *,
        group: str | None = None,
        name: str | None = None,
        **options: Unpack[DecorationOptions],
    ) -> HandlerDecorator[P]: ...
    def on(self, handler: Any = None, /, **options: Any) -> Any:
        """Make an atask of the decorated function that handles the event at workers which have loaded it: a
        decorator, bare or with options.

        The worker that has the event makes the tries of a `retry`, and parks in the pauses.

        Args:
            handler: The function, where it is a bare decorator.
            **options: `group`, str or None: of all workers one handles each event, the handler of each group; a
                group is there from the first worker on that has served it, and its events wait for a worker. None:
                every worker handles the events that are published while it serves. `name`, str or None: the name
                of the atask; None: module and qualified name of the function. And the options of `@atask`, but for
                `queue`, which a group has. Only `timeout`, in seconds from when a worker has it, `max_attempts`,
                `delivery`, `executor`, `limit`, `retry` and `resume` count for events; all of them count where the
                atask is called.

        Returns:
            A decorator, which returns the atask.

        Raises:
            TypeError: The function does not take the arguments of the event.
            RegisteringTwice: The group has a handler.

        Guarantees:
            The event is acknowledged after the handler has returned, and given to another worker if its worker
            dies. One whose handler raises at its last try is logged, and goes to the dead queue where there is a
            broker.
        """
        if isinstance(handler, str):
            raise TypeError(f"say what the name is: @{self.__name__}.on(group={handler!r})")
        decorator = self._decorator(**options)
        return decorator if handler is None else decorator(handler)

    def _decorator(
        self, *, group: str | None = None, name: str | None = None, **options: Unpack[DecorationOptions]
    ) -> HandlerDecorator[P]:
        if options.get("queue") is not None:
            raise TypeError("a handler takes no queue: its group has one")
        queue = None if group is None else self._queue(group)

        def decorate(handler: Callable[P, Any]) -> ATask[P, Any]:
            self._fits(handler)
            named = _default_name(handler) if name is None else name
            router = get_router(self.namespace)
            if queue is not None:
                _refuse_second(router, self.name, named, queue)
                options["queue"] = queue
            task: ATask[P, Any] = atask(handler, name=named, namespace=self.namespace, **options)
            item = router.registry.get(named)
            assert item is not None, "it was registered just now"
            vars(item)["subscription"] = Subscription.of(self.name, named, queue, item.options)
            return task

        return decorate

    def _queue(self, group: str) -> str:
        """The work queue of a group."""
        queue = f"events:{self.name}:{validate_queue(group, 'group')}"
        if len(queue) > MAX_NAME:
            queue = f"events:{blake2b(queue.encode(), digest_size=16).hexdigest()}"
        return queue

    def _fits(self, handler: Any) -> None:
        """Raise TypeError unless the handler can be called as the event is published."""
        try:
            signature = signature_of(handler)
        except (TypeError, ValueError):
            return  # a builtin, perhaps: the worker will find out
        given: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in self._signature.parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                given.append(None)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = None
        try:
            signature.bind(*given, **named)
        except TypeError as error:
            handles = getattr(handler, "__qualname__", repr(handler))
            published = f"{self.name}{self._signature}"
            raise TypeError(
                f"{handles} cannot handle {published}: {error}; give it the parameters of the event"
            ) from None

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<event {self.name!r}>"


class EventDecorator(Protocol):
    """The decorator that `@event(...)` with options returns."""

    def __call__(self, function: Callable[P, Any], /) -> Event[P]: ...


@overload
def event(function: Callable[P, Any], /) -> Event[P]: ...
@overload
def event(*, name: str | None = None, namespace: str = "default") -> EventDecorator: ...
def event(function: Any = None, /, *, name: str | None = None, namespace: str = "default") -> Any:
    """Declare an event: bare `@event`, or `@event(name="orders.paid")`. See `Event`.

    Programs that share no code may declare one each for itself.

    Args:
        function: The function says which arguments the event has; its body never runs.
        name: The name of the event: letters, digits and `-_.:@#,/+`, at most 100. None: module and qualified name.
        namespace: The namespace of the event. Name and namespace are its identity.

    Raises:
        TypeError: It is no function.
        ValueError: The name is one that brokers do not take.

    Example:
        ```python
        from atasks import event

        @event
        async def paid(order: int) -> None: ...

        @paid.on(group="billing")
        async def bill(order: int) -> None:
            print("bill for order", order)

        await paid(7)
        ```
    """
    if function is None:
        return functools.partial(event, name=name, namespace=namespace)
    if not inspect.isroutine(function):
        raise TypeError(f"@event declares a function, not {function!r}")
    return Event(function, _default_name(function) if name is None else name, namespace)


def _refuse_second(router: Router, event: str, name: str, queue: str) -> None:
    """Raise RegisteringTwice if the group of that queue has another handler than the one of that name."""
    registry = router.registry
    for known in registry.names():
        item = registry.get(known)
        subscription = getattr(item, "subscription", None)
        if item is not None and subscription is not None and subscription.queue == queue and known != name:
            raise RegisteringTwice(
                f"two functions handle {event!r} in one group, {place(item.coro)} and now {name!r}: give one "
                "of them another group"
            )
