"""Stages as plain data, for a run on the workers: atasks by name, with the options that the submitter gives them.

Nothing in it is code, so a worker needs none of the submitter's modules to run it, and a codec that carries no
code still does not. A worker believes none of it: `read` holds it to what can be submitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

import msgspec
from msgspec import Meta, Struct

from atasks.definitions import ATask, BaseTask, StreamTask
from atasks.errors import DecodeError
from atasks.options import CallOptions, TaskOptions
from atasks.pipeline.flow.arguments import Bound
from atasks.pipeline.flow.invocation import name_of, wanted_names
from atasks.pipeline.pipeline import Pipeline, Stage
from atasks.pipeline.stages.fork import MAX_WAYS, ForkStage
from atasks.pipeline.stages.functions import FunctionStage, GroupStage, check_combination
from atasks.pipeline.stages.options import StageOptions, read_options
from atasks.pipeline.stages.order import CollectStage, OrderedStage
from atasks.policies.limit import Limit, Rule
from atasks.policies.retry import Retry

__all__ = ["Blueprint", "StageSpec", "TaskSpec", "blueprint", "build", "read", "tasks_of"]

Blueprint = dict[str, Any]
"""One stage."""

MAX_STAGES: Final = 1000
"""Stages of a run all in all: those in forks, groups and pipelines within pipelines count."""

_STAGE_OPTIONS: Final = ("workers", "throttle", "timeout", "skip_errors", "max_errors", "param_name", "unpack")
_DEFAULTS: Final = StageOptions()
_TASK_OPTIONS: Final = tuple(item.name for item in fields(TaskOptions) if item.name in CallOptions.__annotations__)
_NO_OPTIONS: Final = TaskOptions()


class TaskSpec(NamedTuple):
    """An atask that a blueprint names."""

    name: str
    namespace: str
    options: TaskOptions


# -- from stages to data


def blueprint(stages: Sequence[Stage]) -> list[Blueprint]:
    """The data of the stages. Raises TypeError, which names it, for what cannot run on workers."""
    return [_describe(stage) for stage in stages]


def _describe(stage: Stage) -> Blueprint:
    match stage:
        case FunctionStage():
            return {
                "kind": "function",
                "function": _describe_function(stage),
                "role": stage.role,
                "branch": stage.branch,
                "takes_item": stage.takes_item,
                "options": _describe_options(stage.options, stage.name),
            }
        case GroupStage():
            return {
                "kind": "group",
                "members": [_describe(member) for member in stage.members],
                "lenient": stage.lenient,
                "options": _describe_options(stage.options, stage.name),
            }
        case ForkStage():
            return {"kind": "fork", "pipelines": [blueprint(stages) for stages in stage.pipelines]}
        case OrderedStage():
            return {"kind": "ordered", "window": stage.window}
        case CollectStage() if stage.seconds is not None:
            raise TypeError(
                "collect(n, seconds=...) makes other lists each time, so a run on the workers could not find its "
                "finished lists again: leave seconds out, or await the pipeline"
            )
        case CollectStage():
            return {"kind": "collect", "size": stage.size}
    raise _refusal(stage.name, "is a stage of your own")


def _describe_function(stage: FunctionStage) -> Blueprint:
    function: Any = stage.function
    if isinstance(function, Pipeline):
        return {"pipeline": blueprint(function.stages)}
    if not isinstance(function, BaseTask):
        raise _refusal(stage.name, "is a local function")
    bound = stage.options.bind or Bound()
    names = wanted_names(cast("Any", function))
    asked = {"element_index", "worker_info"}.intersection(names) - set(bound.kwargs)
    if asked:
        wanted = ", ".join(sorted(asked))
        raise TypeError(f"{stage.name!r} asks for {wanted}, which a run on the workers does not have")
    return _describe_task(function)


def _describe_task(function: BaseTask[..., Any]) -> Blueprint:
    options = {
        name: value
        for name in _TASK_OPTIONS
        if (value := getattr(function.task_options, name)) != getattr(_NO_OPTIONS, name)
    }
    if "retry" in options:
        options["retry"] = options["retry"].described()
    return {
        "task": function.name,
        "namespace": function.namespace,
        "label": name_of(function),
        "streams": function.streams,
        "options": options,
    }


def _describe_options(options: StageOptions, name: str) -> Blueprint:
    for hook in ("on_start", "on_done"):
        if getattr(options, hook) is not None:
            raise _refusal(name_of(getattr(options, hook)), f"is {hook} of stage {name!r}, a local function")
    data = {
        option: value
        for option in _STAGE_OPTIONS
        if (value := getattr(options, option)) != getattr(_DEFAULTS, option)
    }
    if options.bind is not None:
        data["bind"] = [list(options.bind.args), dict(options.bind.kwargs)]
    if options.limit is not None:
        limit = options.limit
        if limit.key is not None:
            raise _refusal(
                name_of(limit.key), f"is the key of limit {limit.name!r} of stage {name!r}, a local function"
            )
        data["limit"] = {"name": limit.name, "namespace": limit.namespace, "rule": list(limit.rule)}
    handler: Any = options.on_error
    if handler is not None:
        if not isinstance(handler, BaseTask) or handler.streams:
            raise _refusal(name_of(handler), f"is on_error of stage {name!r}, a local function")
        data["on_error"] = _describe_task(handler)
    return data


def _refusal(name: str, what: str) -> TypeError:
    return TypeError(
        f"{name!r} {what}, and submit() runs atasks only, on the workers: make it an atask, or await the pipeline"
    )


# -- what a worker is sent


class FunctionSpec(Struct, forbid_unknown_fields=True):
    """An atask; or, with `pipeline`, the stages of a pipeline."""

    pipeline: Annotated[list[StageSpec], Meta(min_length=1)] | None = None
    task: str = ""
    namespace: str = ""
    label: str = ""
    streams: bool = False
    options: dict[str, Any] = {}


class CallSpec(Struct, forbid_unknown_fields=True, tag_field="kind", tag="function"):
    """A stage that calls a function."""

    function: FunctionSpec
    role: Literal["map", "filter", "each"]
    branch: bool
    takes_item: bool
    options: dict[str, Any]


class LimitSpec(Struct, forbid_unknown_fields=True):
    """The limit of a stage."""

    name: str
    namespace: str
    rule: tuple[int, int, float]


class GroupSpec(Struct, forbid_unknown_fields=True, tag_field="kind", tag="group"):
    """A stage that calls several."""

    members: Annotated[list[CallSpec], Meta(min_length=1, max_length=MAX_STAGES)]
    lenient: bool
    options: dict[str, Any]


class ForkSpec(Struct, forbid_unknown_fields=True, tag_field="kind", tag="fork"):
    """A fork."""

    pipelines: Annotated[
        list[Annotated[list[StageSpec], Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_WAYS)
    ]


class OrderedSpec(Struct, forbid_unknown_fields=True, tag_field="kind", tag="ordered"):
    """Puts items in order."""

    window: Annotated[int, Meta(ge=1)]


class CollectSpec(Struct, forbid_unknown_fields=True, tag_field="kind", tag="collect"):
    """Makes lists."""

    size: Annotated[int, Meta(ge=1)] | None


StageSpec = CallSpec | GroupSpec | ForkSpec | OrderedSpec | CollectSpec


def read(data: Any, namespace: str | None = None) -> list[StageSpec]:
    """Make the stages again that `blueprint` has described, for a run in this namespace; None: in that of its
    first atask.

    Raises DecodeError for what could not be submitted: another namespace's atasks, options that a stage would not
    be made with, more than `MAX_STAGES` stages.
    """
    try:
        specs: list[StageSpec] = msgspec.convert(data, Annotated[list[StageSpec], Meta(max_length=MAX_STAGES)])
        count = sum(1 for _ in _all(specs))
        if count > MAX_STAGES:
            raise ValueError(f"{count} stages: a run may have at most {MAX_STAGES} in total")
        for spec in specs:
            for kind, name, other in _namespaces_of(spec):
                namespace = namespace or other
                if other != namespace:
                    raise ValueError(
                        f"{kind} {name!r} is of namespace {other!r}, and a run of {namespace!r} has those of its "
                        "own namespace only"
                    )
            build(spec)  # which makes the namespaces that it names
    except (TypeError, ValueError, RecursionError) as error:
        raise DecodeError(f"these stages cannot run on workers: {error}") from error
    return specs


def _all(specs: Sequence[StageSpec]) -> Iterator[StageSpec]:
    """The stages, and those inside of them."""
    for spec in specs:
        yield spec
        match spec:
            case CallSpec(function=function) if function.pipeline is not None:
                yield from _all(function.pipeline)
            case GroupSpec(members=members):
                yield from _all(members)
            case ForkSpec(pipelines=pipelines):
                for inner in pipelines:
                    yield from _all(inner)


def build(spec: StageSpec, deaths: int = 0) -> Stage:
    """The stage. Its atasks may kill so many workers less than their options say. Raises TypeError or ValueError
    for what cannot be made."""
    match spec:
        case CallSpec():
            return _build_call(spec, deaths)
        case GroupSpec():
            members = tuple(_build_call(member, deaths) for member in spec.members)
            return GroupStage(members, spec.lenient, options=_build_options(spec.options))
        case ForkSpec():
            return ForkStage(tuple(tuple(build(each, deaths) for each in stages) for stages in spec.pipelines))
        case OrderedSpec():
            return OrderedStage(spec.window)
        case CollectSpec():
            return CollectStage(spec.size)


def _build_call(spec: CallSpec, deaths: int) -> FunctionStage:
    function = _build_function(spec.function, deaths)
    if isinstance(function, Pipeline):
        function.check_callable()
    options = _build_options(spec.options)
    stage = FunctionStage(function, spec.role, spec.branch, False, spec.takes_item, options=options)
    check_combination(stage, options)
    return stage


def _build_function(spec: FunctionSpec, deaths: int) -> Any:
    if spec.pipeline is not None:
        return Pipeline(*(build(stage, deaths) for stage in spec.pipeline))
    if not spec.task:
        raise ValueError("a stage names neither an atask nor a pipeline")
    options = _options_of(spec)
    options = options.with_changes({"max_attempts": max(1, options.max_attempts - deaths)})
    kind = StreamTask if spec.streams else ATask

    def remote(*args: Any, **kwargs: Any) -> Any:
        """Stand in for a function that is called by its name: only its workers know it."""

    remote.__name__ = remote.__qualname__ = spec.label
    return kind(remote, spec.task, spec.namespace, options)


def _options_of(spec: FunctionSpec) -> TaskOptions:
    for name in spec.options:
        if name not in _TASK_OPTIONS:
            raise TypeError(f"{name!r} is no option of a call")
    given = dict(spec.options)
    if given.get("retry") is not None:
        given["retry"] = Retry.restored(given["retry"])
    return _NO_OPTIONS.with_changes(given)


def _build_options(data: dict[str, Any]) -> StageOptions:
    given = dict(data)
    bound, limit, handler = (given.pop(name, None) for name in ("bind", "limit", "on_error"))
    for name in given:
        if name not in _STAGE_OPTIONS:
            raise TypeError(f"{name!r} is no option of a stage that runs on workers")
    if bound is not None:
        args, kwargs = msgspec.convert(bound, tuple[list[Any], dict[str, Any]])
        given["bind"] = Bound(tuple(args), kwargs)
    if limit is not None:
        said = msgspec.convert(limit, LimitSpec)
        given["limit"] = Limit.restored(said.name, Rule(*said.rule), said.namespace)
    if handler is not None:
        given["on_error"] = _build_function(_handler_of(handler), 0)
    return read_options(given, remote=False)


def _handler_of(data: Any) -> FunctionSpec:
    """Return the `on_error` of a stage: an atask."""
    handler = msgspec.convert(data, FunctionSpec)
    if handler.pipeline is not None or handler.streams:
        raise ValueError("on_error is an atask")
    return handler


def _namespaces_of(spec: StageSpec) -> Iterator[tuple[str, str, str]]:
    """Everything of a stage that is of a namespace: its kind, its name, and that namespace."""
    for task in tasks_of(spec):
        yield "atask", task.name, task.namespace
    for each in _all((spec,)):
        if isinstance(each, (CallSpec, GroupSpec)):
            if (limit := each.options.get("limit")) is not None:
                said = msgspec.convert(limit, LimitSpec)
                yield "limit", said.name, said.namespace
            if (handler := each.options.get("on_error")) is not None:
                named = _handler_of(handler)
                yield "atask", named.task, named.namespace


def tasks_of(spec: StageSpec) -> Iterator[TaskSpec]:
    """The atasks that a stage calls."""
    for each in _all((spec,)):
        if isinstance(each, CallSpec) and each.function.pipeline is None:
            function = each.function
            yield TaskSpec(function.task, function.namespace, _options_of(function))
