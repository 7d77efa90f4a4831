"""Stages as plain data, for a run on the workers: atasks by name, with the options that the submitter gives them.

Nothing in it is code, so a worker needs none of the submitter's modules to run it, and a codec that carries no
code still does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple, cast

from atasks.options import CallOptions, TaskOptions
from atasks.pipeline.calling import Bound, name_of, wanted_names
from atasks.pipeline.forks import ForkStage
from atasks.pipeline.functions import FunctionStage, GroupStage
from atasks.pipeline.options import StageOptions
from atasks.pipeline.pipeline import Pipeline
from atasks.pipeline.shaping import CollectStage, OrderedStage
from atasks.pipeline.stages import Stage
from atasks.tasks import ATask, BaseTask, StreamTask

__all__ = ["Blueprint", "TaskSpec", "blueprint", "build", "tasks_of"]

Blueprint = dict[str, Any]
"""One stage."""

_STAGE_OPTIONS: Final = ("workers", "throttle", "timeout", "skip_errors", "param_name", "unpack")
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
        raise TypeError(f"{stage.name!r} asks for {', '.join(sorted(asked))}, which a run on the workers has not")
    options = {
        name: value
        for name in _TASK_OPTIONS
        if (value := getattr(function.task_options, name)) != getattr(_NO_OPTIONS, name)
    }
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
    return data


def _refusal(name: str, what: str) -> TypeError:
    return TypeError(
        f"{name!r} {what}, and submit() runs atasks only, on the workers: make it an atask, or await the pipeline"
    )


# -- from data to stages


def build(data: Blueprint, deaths: int = 0) -> Stage:
    """The stage. Its atasks may kill so many workers less than their options say."""
    match data["kind"]:
        case "function":
            return FunctionStage(
                _build_function(data["function"], deaths),
                data["role"],
                data["branch"],
                False,
                data["takes_item"],
                options=_build_options(data["options"]),
            )
        case "group":
            members = tuple(build(member, deaths) for member in data["members"])
            assert all(isinstance(member, FunctionStage) for member in members)
            return GroupStage(members, data["lenient"], options=_build_options(data["options"]))  # type: ignore[arg-type]
        case "fork":
            return ForkStage(tuple(tuple(build(each, deaths) for each in stages) for stages in data["pipelines"]))
        case "ordered":
            return OrderedStage(data["window"])
        case "collect":
            return CollectStage(data["size"])
        case kind:
            raise ValueError(f"a stage of kind {kind!r} is not known here: upgrade the workers")


def _build_function(data: Blueprint, deaths: int) -> Any:
    if "pipeline" in data:
        return Pipeline(*(build(stage, deaths) for stage in data["pipeline"]))
    options = dict(data["options"])
    options["max_attempts"] = max(1, options.get("max_attempts", _NO_OPTIONS.max_attempts) - deaths)
    kind = StreamTask if data["streams"] else ATask

    def remote(*args: Any, **kwargs: Any) -> Any:
        """It is called by name: what it is, its workers know."""

    remote.__name__ = remote.__qualname__ = data["label"]
    return kind(remote, data["task"], data["namespace"], _NO_OPTIONS.with_changes(options))


def _build_options(data: Blueprint) -> StageOptions:
    given = {name: value for name, value in data.items() if name != "bind"}
    bound = data.get("bind")
    return StageOptions(**given, bind=None if bound is None else Bound(tuple(bound[0]), dict(bound[1])))


def tasks_of(stage: Blueprint) -> Iterator[TaskSpec]:
    """The atasks that a stage calls."""
    match stage["kind"]:
        case "function":
            function = stage["function"]
            if "pipeline" in function:
                for inner in function["pipeline"]:
                    yield from tasks_of(inner)
            else:
                options = _NO_OPTIONS.with_changes(function["options"])
                yield TaskSpec(function["task"], function["namespace"], options)
        case "group":
            for member in stage["members"]:
                yield from tasks_of(member)
        case "fork":
            for stages in stage["pipelines"]:
                for inner in stages:
                    yield from tasks_of(inner)
