"""The arguments that a stage's function gets besides the item.

Used in processes of stages too, whose start waits for what is imported here: neither `inspect` nor `dataclasses`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atasks.pipeline.flow.arguments import WorkerInfo
    from atasks.pipeline.flow.channel import Lineage

__all__ = [
    "ELEMENT_INDEX",
    "WORKER_INFO",
    "Invocation",
    "Start",
    "call_hook",
    "iterator_of",
    "name_of",
    "told",
    "wanted_names",
]

ELEMENT_INDEX = "element_index"
"""The parameter that gets the lineage of the item."""
WORKER_INFO = "worker_info"
"""The parameter that gets the `WorkerInfo`."""


class Start:
    """The arguments that a pipeline was called with: the one item of its first stage."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs


class Invocation:
    """A function, and how the item reaches it."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        param_name: str | None,
        unpack: bool,
        takes_item: bool,
    ) -> None:
        self.function = function
        self.args = args
        """The positional ones of `bind`."""
        self.kwargs = kwargs
        """Those by keyword."""
        self.param_name = param_name
        self.unpack = unpack
        self.takes_item = takes_item
        names: Sequence[str] = wanted_names(function)
        if takes_item and param_name is None:
            names = names[len(args) + 1 :]  # the first ones are taken
        self.names = [name for name in names if name and name not in kwargs and name != param_name]
        """The parameters that can be given by name what the program knows. A process is told of them: it need not
        look."""

    def prepare(self, state: Mapping[str, Any], info: WorkerInfo | None) -> Callable[[Any, Lineage], Any]:
        """A function of an item and its lineage that calls the stage's function.

        `state` is what `on_start` returned: its keys, `worker_info` and `element_index` are passed to parameters
        of these names. `info` may be None where no parameter asks for it.
        """
        function, args = self.function, self.args
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
                named = {**named, ELEMENT_INDEX: lineage}
            return function(*positional, **named)

        def call_plain(item: Any, lineage: Lineage) -> Any:
            return function(item) if type(item) is not Start else call(item, lineage)

        return call_plain if self.is_plain(state, info) else call

    def is_plain(self, state: Mapping[str, Any], info: WorkerInfo | None) -> bool:
        """Return True if the function is called with the item and nothing else."""
        plain = self.takes_item and self.param_name is None and not self.unpack and not self.args
        return plain and self._keywords(state, info) == ({}, False)

    def _keywords(self, state: Mapping[str, Any], info: WorkerInfo | None) -> tuple[dict[str, Any], bool]:
        """The keyword arguments of every call, and whether each also gets its index."""
        by_index = ELEMENT_INDEX in self.names and ELEMENT_INDEX not in state
        return {**self.kwargs, **_given(self.names, state, info)}, by_index


def _given(names: Sequence[str], state: Mapping[str, Any], info: WorkerInfo | None) -> dict[str, Any]:
    offered = {**state, WORKER_INFO: info}
    return {name: offered[name] for name in names if name in offered}


def wanted_names(function: Callable[..., Any]) -> list[str]:
    """The parameters that can be passed by name, after those that cannot; empty if the signature is unknown."""
    import inspect

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


def call_hook(hook: Callable[..., Any], state: Mapping[str, Any], info: WorkerInfo | None) -> Any:
    """Call `on_start` or `on_done` with what it asks for by name. `info` may be None where it asks for none."""
    return hook(**_given(wanted_names(hook), state, info))


async def told(handler: Callable[[Any, Exception], Any], item: Any, error: Exception) -> None:
    """Call the `on_error` of a stage, and await it if it is to be awaited."""
    if type(item) is Start:
        item = item.args[0] if len(item.args) == 1 and not item.kwargs else item.args
    import inspect

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
