"""Methods of handles that code without an event loop calls, too: `handle.done.sync()`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial, update_wrapper
from inspect import isasyncgenfunction
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

if TYPE_CHECKING:
    from atasks.router import Router

__all__ = ["HandleMethod", "also_sync"]

P = ParamSpec("P")
A = TypeVar("A")
S = TypeVar("S")
T = TypeVar("T")


class HandleMethod(Generic[P, A, S]):
    """A method of a handle: `await handle.done()`, and `handle.done.sync()` in code without an event loop."""

    def __init__(self, method: Callable[..., A]) -> None:
        self._method: Any = method
        """The function, or where this is that of a handle its method."""
        update_wrapper(self, method)

    @overload
    def __get__(self, handle: None, owner: type) -> Callable[Concatenate[Any, P], A]: ...
    @overload
    def __get__(self, handle: object, owner: type) -> HandleMethod[P, A, S]: ...
    def __get__(self, handle: object | None, owner: type) -> Any:
        return self._method if handle is None else HandleMethod(MethodType(self._method, handle))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return cast("A", self._method(*args, **kwargs))

    def sync(self, /, *args: P.args, **kwargs: P.kwargs) -> S:
        """Return what an await of the method gives; of one that is iterated over, an iterator of its items.

        Blocks this thread as `ATask.sync` does, and each step of the iterator does. Raises what the method raises,
        and RuntimeError where an event loop runs.
        """
        name = f"handle.{self._method.__name__}"
        router: Router = self._method.__self__._router_of_thread()
        make = partial(self._method, *args, **kwargs)
        if isasyncgenfunction(self._method):
            found: Any = router.iterate_sync(f"{name}.sync()", f"`async for` over {name}()", make)
        else:

            async def awaited() -> Any:
                return await make()

            found = router.run_sync(f"{name}.sync()", f"`await` {name}()", awaited)
        return cast("S", found)

    def __repr__(self) -> str:
        return f"<{self._method.__name__} of {self._method.__self__!r}>"


@overload
def also_sync(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> HandleMethod[P, Coroutine[Any, Any, T], T]: ...
@overload
def also_sync(
    function: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> HandleMethod[P, AsyncGenerator[T, None], Iterator[T]]: ...
def also_sync(function: Callable[..., Any]) -> HandleMethod[..., Any, Any]:
    """Decorate a method of a handle that threads call by its `sync`."""
    return HandleMethod(function)
