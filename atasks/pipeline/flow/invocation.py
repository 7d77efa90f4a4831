"""The arguments that a stage's function gets besides the item. Used in processes of stages too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVarTuple

if TYPE_CHECKING:
    from atasks.pipeline.flow.channel import Lineage

__all__ = [
    "Bound",
    "Invocation",
    "Start",
    "WorkerInfo",
    "bind",
    "call_hook",
    "iterator_of",
    "name_of",
    "told",
    "wanted_names",
]

Ts = TypeVarTuple("Ts")


@dataclass(frozen=True)
class Bound(Generic[*Ts]):
    """Extra arguments of a stage's function. Made by `bind`. Type checkers know the positional ones."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((len(self.args), *self.kwargs))


def bind(*args: *Ts, **kwargs: Any) -> Bound[*Ts]:
    """Extra arguments for the option `bind`: `map(scale, bind=bind(by=10))` calls `scale(item, by=10)`.

    Args:
        *args: Positional ones, which come before the item.
        **kwargs: Those by keyword.

    Returns:
        The arguments, for `bind=`.
    """
    return Bound(args, kwargs)


@dataclass(frozen=True)
class WorkerInfo:
    """The argument of `on_start`, `on_done` and a stage's function if they have a parameter `worker_info`."""

    stage: str
    """The name of the stage."""
    index: int
    """Which of the stage's workers this is, from 0."""


@dataclass(frozen=True)
class Start:
    """The arguments that a pipeline was called with: the one item of its first stage."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Invocation:
    """A function, and how the item reaches it."""

    function: Callable[..., Any]
    bound: Bound[*tuple[Any, ...]] = Bound()
    param_name: str | None = None
    unpack: bool = False
    takes_item: bool = True

    def prepare(self, state: Mapping[str, Any], info: WorkerInfo) -> Callable[[Any, Lineage], Any]:
        """A function of an item and its lineage that calls the stage's function.

        `state` is what `on_start` returned: its keys, `worker_info` and `element_index` are passed to parameters
        of these names.
        """
        function, args = self.function, self.bound.args
        kwargs, by_index = self._keywords(state, info)
        if not self.takes_item:

            def pass_item(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return args, kwargs

        elif self.param_name is not None:
            name = self.param_name

            def pass_item(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return args, {**kwargs, name: item}

        elif self.unpack:

            def pass_item(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
                if isinstance(item, Mapping):
                    return args, {**kwargs, **item}
                return (*args, *item), kwargs

        else:

            def pass_item(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return (*args, item), kwargs

        def call(item: Any, lineage: Lineage) -> Any:
            if type(item) is not Start:
                positional, named = pass_item(item)
            elif len(item.args) == 1 and not item.kwargs:  # so a pipeline is called with an item, as a stage is
                positional, named = pass_item(item.args[0])
            else:
                positional, named = (*args, *item.args), {**kwargs, **item.kwargs}
            if by_index:
                named = {**named, "element_index": lineage}
            return function(*positional, **named)

        return call

    def is_plain(self, state: Mapping[str, Any], info: WorkerInfo) -> bool:
        """Return True if the function is called with the item and nothing else."""
        plain = self.takes_item and self.param_name is None and not self.unpack and not self.bound.args
        return plain and self._keywords(state, info) == ({}, False)

    def _keywords(self, state: Mapping[str, Any], info: WorkerInfo) -> tuple[dict[str, Any], bool]:
        """The keyword arguments of every call, and whether each also gets its index."""
        names = wanted_names(self.function)
        if self.takes_item and self.param_name is None:
            names = names[len(self.bound.args) + 1 :]  # the first ones are taken
        names = [name for name in names if name not in self.bound.kwargs and name != self.param_name]
        offered = {**state, "worker_info": info}
        return {
            **self.bound.kwargs,
            **{name: offered[name] for name in names if name in offered},
        }, "element_index" in names and "element_index" not in state


def wanted_names(function: Callable[..., Any]) -> list[str]:
    """The parameters that can be passed by name, after those that cannot; empty if the signature is unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return []
    passable = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        parameter.name if parameter.kind in passable else ""
        for parameter in parameters
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def call_hook(hook: Callable[..., Any], state: Mapping[str, Any], info: WorkerInfo) -> Any:
    """Call `on_start` or `on_done` with what it asks for by name."""
    offered = {**state, "worker_info": info}
    return hook(**{name: offered[name] for name in wanted_names(hook) if name in offered})


async def told(handler: Callable[[Any, Exception], Any], item: Any, error: Exception) -> None:
    """Call the `on_error` of a stage, and await it if it is to be awaited."""
    if type(item) is Start:
        item = item.args[0] if len(item.args) == 1 and not item.kwargs else item.args
    result = handler(item, error)
    if inspect.isawaitable(result):
        await result


def name_of(function: Any) -> str:
    """Return the name of a function in messages."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return str(getattr(function, "__name__", None) or type(function).__name__)


def iterator_of(made: Any, name: str) -> Iterator[Any]:
    """An iterator over what the function of a branch returned. Raises TypeError where that cannot be iterated."""
    try:
        return iter(made)
    except TypeError:
        raise TypeError(
            f"{name!r} is a branch and returned {type(made).__name__}, which cannot be iterated: "
            "yield items or return an iterable, or make it a stage without branch=True"
        ) from None
