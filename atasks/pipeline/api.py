"""The functions that make pipelines of one stage, which calls a function. Their types are in `api.pyi`."""

from __future__ import annotations

import functools
from typing import Any

from atasks.pipeline.flow.invocation import name_of
from atasks.pipeline.pipeline import Pipeline
from atasks.pipeline.stages.functions import make_stage

__all__ = [
    "after",
    "each",
    "filter",
    "flat_map",
    "map",
    "stage",
]


def stage(function: Any = None, /, *, branch: bool = False, join: bool = False, **options: Any) -> Any:
    """A pipeline of one stage, which calls `function` with each item; also a decorator, bare or with options.

    An atask is awaited remotely, with up to 64 calls in flight. Anything else runs here, with one unless `workers`
    says otherwise: a coroutine function on the event loop, a plain function in threads of its own, or in processes
    (`multiprocess=True`), or on the event loop (`inline=True`). A pipeline runs once per item.

    Args:
        function: The function; nothing where this is a decorator with options.
        branch: True: what the function yields, or the elements of what it returns, go on one by one.
        join: True: it is called once per worker, with the stream: an async iterator for a coroutine function or an
            async generator, an iterator for a plain function.
        **options: Those of `StageOptions`.

    Raises:
        TypeError: The function or an option cannot work. It is raised at once.
        ValueError: An option has a value that it does not take.

    Example:
        ```python
        from atasks.pipeline import stage

        @stage
        def double(n: int) -> int:
            return 2 * n

        print(sorted(await (range(3) | double)))  # [0, 2, 4]
        ```
    """
    if function is None:
        return functools.partial(stage, branch=branch, join=join, **options)
    return Pipeline(make_stage(function, options, branch=branch, join=join))


def after(function: Any, /, **options: Any) -> Any:
    """Like `stage`, but the function is called without the item, once for each one that arrives.

    Args:
        function: A function, a coroutine function or an atask.
        **options: Those of `stage`; `bind` gives the arguments.

    Returns:
        The stage: `items | after(function)`.

    Raises:
        TypeError: An option is unknown.
    """
    return Pipeline(make_stage(function, options, takes_item=False))


def map(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """`stage(function)`: the function's result for each item.

    Args:
        function: An atask, a coroutine function or a plain function.
        *misplaced: Nothing: the data comes by `|`.
        **options: Those of `StageOptions`.

    Raises:
        TypeError: It was called as the builtin is, with data; or the function or an option cannot work.
        ValueError: An option has a value that it does not take.

    Example:
        ```python
        from atasks.pipeline import map

        async def double(n: int) -> int:
            return 2 * n

        print(sorted(await (range(3) | map(double))))  # [0, 2, 4]
        ```
    """
    _refuse_data("map", function, misplaced)
    return Pipeline(make_stage(function, options))


def filter(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """The items for which the function gives something true.

    Args:
        function: An atask, a coroutine function or a plain function.
        *misplaced: Nothing: the data comes by `|`.
        **options: Those of `StageOptions`.

    Raises:
        TypeError: It was called as the builtin is, with data; or the function or an option cannot work.
        ValueError: An option has a value that it does not take.

    Example:
        ```python
        from atasks.pipeline import filter

        def is_even(n: int) -> bool:
            return n % 2 == 0

        print(sorted(await (range(5) | filter(is_even))))  # [0, 2, 4]
        ```
    """
    _refuse_data("filter", function, misplaced)
    return Pipeline(make_stage(function, options, role="filter"))


def flat_map(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """`stage(function, branch=True)`: what the function yields for each item, one by one.

    Args:
        function: An atask, a coroutine function or a plain function.
        *misplaced: Nothing: the data comes by `|`.
        **options: Those of `StageOptions`.

    Raises:
        TypeError: It was called as the builtin is, with data; or the function or an option cannot work.
        ValueError: An option has a value that it does not take.

    Example:
        ```python
        from atasks.pipeline import flat_map

        def twice(n: int):
            yield n
            yield n

        print(sorted(await (range(3) | flat_map(twice))))  # [0, 0, 1, 1, 2, 2]
        ```
    """
    _refuse_data("flat_map", function, misplaced)
    return Pipeline(make_stage(function, options, branch=True))


def each(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """The function is called with each item for its effect; nothing goes on.

    Args:
        function: An atask, a coroutine function or a plain function.
        *misplaced: Nothing: the data comes by `|`.
        **options: Those of `StageOptions`.

    Raises:
        TypeError: It was called as the builtin is, with data; or the function or an option cannot work.
        ValueError: An option has a value that it does not take.

    Example:
        ```python
        from atasks.pipeline import each

        seen: list[int] = []
        await (range(3) | each(seen.append))
        print(sorted(seen))  # [0, 1, 2]
        ```
    """
    _refuse_data("each", function, misplaced)
    return Pipeline(make_stage(function, options, role="each"))


def _refuse_data(name: str, function: Any, misplaced: tuple[Any, ...]) -> None:
    """Raise a TypeError if it was called as the builtin `map` is."""
    if misplaced:
        f = name_of(function) if callable(function) else "f"
        raise TypeError(f"{name}({f}) makes a pipeline, which is given its data by |: write data | {name}({f})")
