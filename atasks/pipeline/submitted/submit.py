"""Handing a pipeline over to the workers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from atasks.definitions import BaseTask
from atasks.functions import signature_of
from atasks.options import TaskOptions
from atasks.pipeline.pipeline import Pipeline
from atasks.pipeline.stages.functions import FunctionStage
from atasks.pipeline.submitted.blueprint import blueprint, read, tasks_of
from atasks.router import Router, get_router
from atasks.submitted.handle import Handle, records_of
from atasks.wire import RUN_PIPELINE, UNBOUNDED

__all__ = ["prepare"]

RUN: Final = RUN_PIPELINE


def prepare(
    pipeline: Pipeline[..., Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Router, str, Callable[[], Coroutine[Any, Any, Handle[Any]]]]:
    """Check that the workers can run it over these arguments. Returns the router, the name of the pipeline, and a
    function that submits it. See `Pipeline.submit`."""
    pipeline(*args, **kwargs)  # checks the arguments, and raises for wrong ones; nothing runs
    _check_arguments(pipeline, args, kwargs)
    data = blueprint(pipeline.stages)
    first = next(chain.from_iterable(map(tasks_of, read(data))), None)  # read as the worker will
    if first is None:
        raise ValueError("no stage of this pipeline is an atask: there is nothing to run on workers")
    options = TaskOptions(
        queue=first.options.queue,
        max_attempts=UNBOUNDED,  # how many workers may die over a stage is up to the atasks of that stage
        on_no_worker=first.options.on_no_worker,
        orphan="run",
        priority=first.options.priority,
        batch=False,
    )
    router = get_router(first.namespace)

    async def send(name: str, *args: Any) -> Handle[Any]:
        call = await router.request_to_keep(name, args, options, router.transport())
        call.id = f"{call.id}.{len(data)}"
        await records_of(router).begin(call, options)
        return Handle(call.id, router.namespace)

    async def submit() -> Handle[Any]:
        records_of(router)  # raises where there are none, before the middlewares
        arguments = (data, list(args), dict(kwargs))
        handle: Handle[Any] = await router.submit_inside(RUN, arguments, {}, options, send)
        return handle

    return router, pipeline.__name__, submit


def _check_arguments(pipeline: Pipeline[..., Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise a TypeError if the first stage's atask does not take them."""
    first = pipeline.stages[0]
    function: Any = first.function if isinstance(first, FunctionStage) else None
    if isinstance(first, FunctionStage) and isinstance(function, BaseTask):
        bound = first.options.bind
        positional = (*bound.args, *args) if bound is not None else args
        named = {**bound.kwargs, **kwargs} if bound is not None else kwargs
        try:
            signature_of(function.local).bind(*positional, **named)
        except TypeError as error:
            raise TypeError(f"{first.name}() cannot be called so: {error}") from None
