"""Functions as a call meets them, decorators included."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os.path
import sys
from collections.abc import Coroutine, Iterator
from types import FunctionType
from typing import Any, Final, TypeVar, cast

from atasks import modules

__all__ = [
    "declaring",
    "identity",
    "innermost",
    "is_context_manager",
    "is_stream",
    "passes_on",
    "place",
    "run_at_once",
    "signature_of",
]

T = TypeVar("T")

Identity = tuple[Any, ...]

MAX_LAYERS: Final = 100
"""Decorators above one function that are looked through."""

CONTEXT_MANAGERS: Final = frozenset(
    cast("Any", make)(len).__code__ for make in (contextlib.contextmanager, contextlib.asynccontextmanager)
)
"""The code of every function that those two return."""


def _layers(function: Any) -> Iterator[Any]:
    """The function, and what is below each of its decorators and partials."""
    for _ in range(MAX_LAYERS):
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        else:
            below = getattr(function, "__wrapped__", None)
            if below is None or below is function:
                return
            function = below


def innermost(function: Any) -> Any:
    """The function as it was written, below its decorators and partials."""
    *_, last = _layers(function)
    return last


def signature_of(function: Any) -> inspect.Signature:
    """The parameters that a call of the function may be made with, whatever its decorators hand on.

    A decorator says what it takes by its own parameters, or by `__signature__`; one that takes `*args, **kwargs`
    takes anything, because it may add arguments or take some away. Raises what `inspect.signature` raises.
    """
    if isinstance(function, functools.partial) or type(function) is FunctionType:
        return inspect.signature(function, follow_wrapped=False)
    if isinstance(function, functools._lru_cache_wrapper):
        return signature_of(function.__wrapped__)  # the wrapper passes its arguments on
    if hasattr(function, "__wrapped__") and "__signature__" not in vars(type(function)):
        return _ANYTHING  # a proxy: what it says of itself is said of the function below
    return inspect.signature(function)


def passes_on(function: Any) -> bool:
    """Return True for a decorator's function that takes any arguments for the function below it."""
    if not hasattr(function, "__wrapped__"):
        return False
    kinds = {parameter.kind for parameter in signature_of(function).parameters.values()}
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds <= _LOOSE


def declaring(function: Any) -> Any:
    """The outermost of its layers that names its parameters."""
    for layer in _layers(function):
        if not passes_on(layer):
            return layer
    return function


def is_stream(function: Any) -> bool:
    """Return True if calling the function gives an async generator, also through decorators that are plain
    functions."""
    for layer in _layers(function):
        if inspect.isasyncgenfunction(layer):
            return True
        if inspect.iscoroutinefunction(layer):
            return False
    return False


def is_context_manager(function: Any) -> bool:
    """Return True if one of the function's decorators is `contextmanager` or `asynccontextmanager`."""
    return any(getattr(layer, "__code__", None) in CONTEXT_MANAGERS for layer in _layers(function))


def identity(function: Any) -> Identity:
    """Return the part of a definition that stays the same in a later version of it: in a module that is loaded
    again, or in an edited cell.

    That is where the innermost function was written (module, qualified name, file), without the line. A partial's
    arguments belong to it, and so do the functions that a decorator's own function holds.
    """
    if isinstance(function, functools.partial):
        return ("partial", identity(function.func), function.args, function.keywords)
    written = innermost(function)
    if isinstance(written, functools.partial):
        return identity(written)
    if not inspect.isroutine(written):
        return (*_home(type(written)), getattr(written, "__dict__", None), _file(type(written).__call__))
    inner = tuple(_home(held) for held in _held(written) if isinstance(held, FunctionType))
    return (*_home(written), _file(written), inner)


def place(function: Any) -> str:
    """File and line of the innermost function, for people."""
    written = innermost(function)
    code = getattr(written, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(written)


def _home(thing: Any) -> tuple[str | None, str]:
    module = getattr(thing, "__module__", None)
    if module in modules.MAIN_NAMES:
        module = modules.main_name() or "__main__"
    return module, getattr(thing, "__qualname__", None) or type(thing).__qualname__


def _file(function: Any) -> str:
    """The file of a function; empty where it was typed in: each cell of a notebook has another name."""
    code = getattr(function, "__code__", None)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if code is None or code.co_filename.startswith("<") or getattr(module, "__file__", None) is None:
        return ""
    path: str = os.path.realpath(code.co_filename)
    return path


def _held(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # it is empty
            yield innermost(cell.cell_contents)


_LOOSE: Final = frozenset(
    {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
)
_ANYTHING: Final = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


def run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing, without an event loop. Raises what it raises; RuntimeError if it
    waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine waits that was taken for one that does not")
