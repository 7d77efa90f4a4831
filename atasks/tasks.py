"""`@atask` makes a coroutine function awaitable across processes and hosts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

from atasks import definitions
from atasks.definitions import _CONTEXT_MANAGER, _METHOD, ATask, BaseTask, StreamTask, _importable_module
from atasks.functions import innermost, is_context_manager
from atasks.options import DecorationOptions
from atasks.unmade_router import router_to_define

if TYPE_CHECKING:
    from atasks.timing import Timing

_restore = definitions._restore  # its name in pickles of every version

__all__ = ["atask", "atask_broadcast", "atask_queue"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AtaskDecorator(Protocol):
    """The decorator that `@atask(...)` with options returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> ATask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the last one takes every function
        self, function: Callable[P, AsyncIterator[T]], /
    ) -> StreamTask[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> ATask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> ATask[P, R]: ...


@overload
def atask(
    function: Callable[P, Coroutine[Any, Any, R]],
    /,
    name: str | None = None,
    namespace: str = "default",
    **options: Unpack[DecorationOptions],
) -> ATask[P, R]: ...
@overload
def atask(  # type: ignore[overload-overlap]  # as above
    function: Callable[P, AsyncIterator[T]],
    /,
    name: str | None = None,
    namespace: str = "default",
    **options: Unpack[DecorationOptions],
) -> StreamTask[P, T]: ...
@overload
def atask(
    function: Callable[P, Awaitable[R]],
    /,
    name: str | None = None,
    namespace: str = "default",
    **options: Unpack[DecorationOptions],
) -> ATask[P, R]: ...
@overload
def atask(
    function: Callable[P, R],
    /,
    name: str | None = None,
    namespace: str = "default",
    **options: Unpack[DecorationOptions],
) -> ATask[P, R]: ...
@overload
def atask(
    function: None = None,
    /,
    name: str | None = None,
    namespace: str = "default",
    **options: Unpack[DecorationOptions],
) -> AtaskDecorator: ...
def atask(
    function: Any = None,
    /,
    name: str | None = None,
    namespace: str = "default",
    **options: Any,
) -> Any:
    """Make a function awaitable on workers: bare `@atask`, or `@atask(timeout=5, queue="gpu")`.

    A coroutine function runs as an asyncio task of the worker. A plain function is called on the worker's event
    loop, and what it returns is awaited if it is awaitable; with `executor="thread"` or `"process"` it may block,
    because it runs there. An async generator function becomes a `StreamTask`. Static methods work, with
    `@staticmethod` above or below.

    Args:
        function: The function; nothing if there are options.
        name: The name by which calls name the atask. None: module and qualified name.
        namespace: The namespace of the atask. Name and namespace are its identity.
        **options: Those of `TaskOptions`, and those that a Router subclass declares. `every`: seconds, from 0.1
            on, or a cron expression in the time zone `tz`, at which workers call it again and again, without
            arguments. `catch_up=True`: ticks that were missed are made later. `overlap="allow"`: a tick is made
            also while the call of the one before waits or runs.

    Raises:
        TypeError: It cannot be an atask (a method, a class method, a generator function, a class), its executor
            cannot run it, or an option is unknown.
        ValueError: An option has a value that it does not take.
        RegisteringTwice: There is another definition of that name.

    Example:
        ```python
        from atasks import atask

        @atask(timeout=5, max_attempts=2)
        async def add(a: int, b: int) -> int:
            return a + b

        print(await add(1, 2))  # 3
        print(await add.options(timeout=1)(1, 2))  # 3
        print(add.name)  # __main__.add
        ```
    """
    if function is None:
        return functools.partial(atask, name=name, namespace=namespace, **options)
    timing = _timing_of(options)
    static = isinstance(function, staticmethod)
    if static:
        function = function.__func__
    _refuse(function, static)
    if name is None:
        name = _default_name(function)
    elif type(name) is not str:
        raise TypeError(f"the name of an atask is a non-empty string, not {name!r}")
    router = router_to_define(namespace)
    task = router.register_atask(name, coro=function, options=options)
    if timing is not None:
        if task.streams:
            raise TypeError(f"{name} is a stream, and a schedule awaits nothing: make it a coroutine function")
        task._check_arguments()  # a schedule has none to give
        if task.task_options.retry is not None:
            task.task_options.retry.described()  # raises for code: it travels with the schedule
        vars(router.registry.get(name))["timing"] = timing
    task._is_static = static
    return task


def atask_queue(coro: Any = None, name: str | None = None, namespace: str = "default", **options: Any) -> Any:
    """The `atask_queue` of atasks 0.0.3: calling the function that it makes puts a call into a queue, and returns
    None. One of those who have called `router.activate_queue(name)` runs the coroutine. See `OriginalEvents`."""
    if coro is None:
        return functools.partial(atask_queue, name=name, namespace=namespace, **options)
    from atasks.router import get_router  # the router imports this module

    return get_router(namespace).register_queue_task(name or _original_name(coro), coro, options)


def atask_broadcast(coro: Any = None, name: str | None = None, namespace: str = "default", **options: Any) -> Any:
    """The `atask_broadcast` of atasks 0.0.3: calling the function that it makes publishes an event, and returns
    None. All who have called `router.activate_broadcast(name)` run the coroutine. See `OriginalEvents`."""
    if coro is None:
        return functools.partial(atask_broadcast, name=name, namespace=namespace, **options)
    from atasks.router import get_router  # the router imports this module

    return get_router(namespace).register_broadcast_task(name or _original_name(coro), coro, options)


def _timing_of(given: dict[str, Any]) -> Timing | None:
    """Take the options of a schedule out of those of an atask; None: there are none."""
    named = {name: given.pop(name) for name in ("every", "tz", "catch_up", "overlap") if name in given}
    if "every" not in named:
        if named:
            raise TypeError(f"{min(named)}= says something of a schedule: give every= too")
        return None
    from atasks.timing import Timing  # for schedules only

    return Timing(**named)


def _original_name(coro: Any) -> str:
    """The name that atasks 0.0.3 gave a coroutine, by which programs activate it."""
    return f"{coro.__module__}.{coro.__name__}"


def _refuse(function: Any, static: bool) -> None:
    """Raise a TypeError that says why, if `function` cannot be an atask."""
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(function, BaseTask):
        raise TypeError(f"{name} is an atask already")
    if isinstance(function, classmethod):
        inner = function.__func__.__qualname__
        raise TypeError(f"{inner} is a class method: make it a @staticmethod, or a function that takes the class")
    if isinstance(function, type):
        raise TypeError(f"{name} is a class: decorate a coroutine function")
    if not callable(function):
        raise TypeError(f"@atask decorates a coroutine function, not {function!r}")
    if is_context_manager(function):
        raise TypeError(_CONTEXT_MANAGER.format(name))
    if inspect.isgeneratorfunction(innermost(function)):
        raise TypeError(
            f"{name} is a generator function, which cannot be awaited: make it a coroutine function, or an async "
            "generator function, which is a stream"
        )
    if not static and _looks_like_a_method(function):
        raise TypeError(_METHOD.format(name))


def _looks_like_a_method(function: Any) -> bool:
    """Defined in a class body, with a first parameter called self or cls.

    Any other function in a class body may still get a `@staticmethod` above; `ATask.__set_name__` sees those
    that did not.
    """
    outer = getattr(function, "__qualname__", "").rpartition(".")[0]
    code = getattr(function, "__code__", None)
    if not outer or outer.endswith("<locals>") or code is None or not code.co_argcount:
        return False
    return code.co_varnames[0] in ("self", "cls")


def _default_name(function: Any) -> str:
    qualname = getattr(function, "__qualname__", None)
    if qualname is None:
        raise TypeError(f"{function!r} has no name: give one, atask(..., name='...')")
    return f"{_importable_module(function) or '__main__'}.{qualname.replace('<locals>.', '')}"
