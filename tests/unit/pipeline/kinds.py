"""The ways in which a stage runs a function, and those in which a run is consumed: most rules hold for all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from atasks import atask
from atasks.pipeline import Pipeline, stage

__all__ = ["CONSUMERS", "KINDS", "LOCAL", "Kind", "consume"]

LOCAL = ("coroutine", "thread", "inline")
KINDS = (*LOCAL, "atask")
CONSUMERS = ("await", "async for", "for")

_names = itertools.count()


class Kind:
    """Makes stages that run a plain function in one of these ways."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.namespace = namespace

    def function(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """A function of this kind that does what `body` does."""
        if self.name in ("thread", "inline"):

            def plain(*args: Any, **kwargs: Any) -> Any:
                return body(*args, **kwargs)

            plain.__name__ = body.__name__
            return plain

        async def function(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            result = body(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        function.__name__ = body.__name__
        if self.name == "coroutine":
            return function
        return atask(function, name=f"{body.__name__}-{next(_names)}", namespace=self.namespace)

    def branch(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """An iterating function of this kind: `body` is a generator function."""
        if self.name in ("thread", "inline"):
            return body
        if self.name == "atask":
            return self.function(lambda *args: list(body(*args)))

        async def function(*args: Any) -> AsyncIterator[Any]:
            for item in body(*args):
                await asyncio.sleep(0)
                yield item

        return function

    def stage(self, body: Callable[..., Any], **options: Any) -> Pipeline[..., Any, Any]:
        """A stage of this kind."""
        made = self.branch(body) if options.get("branch") else self.function(body)
        if self.name == "inline":
            options["inline"] = True
        pipeline: Pipeline[..., Any, Any] = stage(made, **options)
        return pipeline


async def consume(run: Any, how: str) -> list[Any]:
    """All items of a run."""
    if how == "await":
        items = await run
        assert isinstance(items, list)
        return items
    if how == "async for":
        return [item async for item in run]
    items, error = await asyncio.to_thread(_iterate, run)
    if error is not None:
        raise error
    return items


def _iterate(run: Any) -> tuple[list[Any], BaseException | None]:
    """Iterate, and return the items and the error: asyncio would make a new exception of some that leave a
    thread."""
    try:
        return list(run), None
    except BaseException as error:
        return [], error
