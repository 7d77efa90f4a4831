"""Stages that call a function for each item, for the whole stream, or several functions for each item."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from atasks.definitions import BaseTask
from atasks.pipeline.flow.arguments import Bound
from atasks.pipeline.flow.channel import GAP, Channel, Inlet, Lineage
from atasks.pipeline.flow.crew import FunctionCrew
from atasks.pipeline.flow.failing import add_note, deliverable
from atasks.pipeline.flow.invocation import Invocation, Start, name_of
from atasks.pipeline.flow.runners import LimitedRunner, LoopRunner, ThreadRunner
from atasks.pipeline.pipeline import Pipeline, Stage
from atasks.pipeline.plan import Step
from atasks.pipeline.stages.options import (
    QUICK_THROTTLE,
    THROTTLE,
    GroupOptions,
    OnError,
    StageOptions,
    read_options,
)

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine
    from atasks.pipeline.submitted.journal import StageNotes

__all__ = ["CallingStage", "FunctionStage", "GroupStage", "check_combination", "make_stage"]

Role = Literal["map", "filter", "each"]


@dataclass(frozen=True)
class CallingStage(Stage):
    """A stage that calls a function, as a `FunctionCrew` sees it."""

    options: StageOptions = field(default_factory=StageOptions, kw_only=True)
    explicit: bool = field(default=False, kw_only=True, compare=False)
    """True if `workers` was given, and is not the default."""

    notes: StageNotes | None = field(default=None, kw_only=True, compare=False, repr=False)
    """Knows what came of items before, in a run on the workers."""

    takes_arguments = True
    branch = False
    join = False
    is_coroutine = True

    @property
    def counts(self) -> bool:  # type: ignore[override]
        return not self.join

    @property
    def keep(self) -> Callable[[Any, Any], Any] | None:
        """Return a function of an item and its result that gives the value for the next stage; None: the result
        itself goes on."""
        return None

    @property
    def workers(self) -> int | None:
        """The most calls in flight; None: the default of the stage."""
        return self.options.workers

    @property
    def skip_errors(self) -> bool:
        """True if items are dropped for an error."""
        return self.options.skip_errors

    @property
    def timeout(self) -> float | None:
        """Seconds per item."""
        return self.options.timeout

    @property
    def on_error(self) -> OnError | None:
        """Called for each item that is dropped."""
        return self.options.on_error

    @property
    def on_start(self) -> Callable[..., Any] | None:
        """Called by each worker before its first item."""
        return self.options.on_start

    @property
    def on_done(self) -> Callable[..., Any] | None:
        """Called by each worker at its end."""
        return self.options.on_done

    def runner(self, index: int) -> LoopRunner:
        """Return the runner of the function for the worker of this index."""
        raise NotImplementedError

    def limited(self, index: int) -> LoopRunner:
        """Like `runner`, with the stage's limit if it has one."""
        runner, limit = self.runner(index), self.options.limit
        return runner if limit is None else LimitedRunner(runner, limit)

    def employ(self, index: int) -> LoopRunner:
        """Like `limited`, but one that uses the notes of the stage, if it has any."""
        runner = self.limited(index)
        return runner if self.notes is None else self.notes.wrap(runner)

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        throttle = self.options.throttle
        outlet = Channel(THROTTLE if throttle is None else throttle or float("inf"))
        if throttle is None and self.options.multiprocess:
            outlet.most = QUICK_THROTTLE
        engine.add(FunctionCrew(engine, self, inlet, outlet, step.windows))
        return outlet

    def check_first(self) -> None:
        if self.join:
            raise ValueError(f"stage {self.name!r} joins a stream, and has none: write source | pipeline")
        if self.explicit and self.workers != 1:
            raise ValueError(
                f"stage {self.name!r} has workers={self.workers} for the one item that the pipeline is called "
                "with: leave workers out, or write source | pipeline"
            )


@dataclass(frozen=True)
class FunctionStage(CallingStage):
    """Calls one function."""

    function: Callable[..., Any]
    role: Role = "map"
    branch: bool = False
    join: bool = False
    takes_item: bool = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return name_of(self.function)

    @property
    def one_to_one(self) -> bool:  # type: ignore[override]
        return self.role == "map" and not self.branch and not self.join and not self.skip_errors

    @property
    def makes_one(self) -> bool:  # type: ignore[override]
        return self.join and not self.branch and self.workers == 1 and not self.skip_errors

    @property
    def resets(self) -> bool:  # type: ignore[override]
        return self.join

    @property
    def deepens(self) -> int:  # type: ignore[override]
        return int(self.branch)

    @property
    def is_coroutine(self) -> bool:  # type: ignore[override]
        """Calling the function on the event loop gives an object that can be awaited or iterated there."""
        return is_asynchronous(self.function)

    @property
    def is_remote(self) -> bool:
        """The function runs on workers."""
        return isinstance(self.function, BaseTask)

    @property
    def keep(self) -> Callable[[Any, Any], Any] | None:
        return {"map": None, "filter": _if_true, "each": _nothing}[self.role]

    @property
    def invocation(self) -> Invocation:
        """The way in which the function gets the item."""
        options = self.options
        bound = options.bind or Bound()
        return Invocation(
            self.function, bound.args, bound.kwargs, options.param_name, options.unpack, self.takes_item
        )

    def runner(self, index: int) -> LoopRunner:
        if self.options.multiprocess:
            from atasks.pipeline.flow.processes import ProcessRunner

            return ProcessRunner(self, index)
        return LoopRunner(self, index) if self.is_coroutine or self.options.inline else ThreadRunner(self, index)


def _if_true(value: Any, result: Any) -> Any:
    if not result:
        return GAP
    if type(value) is Start:
        if len(value.args) != 1 or value.kwargs:
            raise TypeError("a pipeline that begins with a filter is called with one item")
        return value.args[0]
    return value


def _nothing(value: Any, result: Any) -> Any:
    return GAP


def is_asynchronous(function: Any) -> bool:
    """Return True for a coroutine function, an async generator function, an atask or a pipeline."""
    if isinstance(function, (BaseTask, Pipeline)):
        return True
    return _is(inspect.iscoroutinefunction, function) or _is(inspect.isasyncgenfunction, function)


def is_stream(function: Any) -> bool:
    """Return True for an async generator function, or an atask that is one."""
    return function.streams if isinstance(function, BaseTask) else _is(inspect.isasyncgenfunction, function)


def _is(check: Callable[[Any], bool], function: Any) -> bool:
    """Return True if the check says so of the function, or of what calling the object calls."""
    return check(function) or check(inspect.getattr_static(type(function), "__call__", None))


def make_stage(
    function: Any,
    given: Mapping[str, Any],
    *,
    role: Role = "map",
    branch: bool = False,
    join: bool = False,
    takes_item: bool = True,
) -> FunctionStage:
    """The stage of a function, checked. Raises TypeError or ValueError for what cannot work."""
    if not callable(function):
        hint = ": write data | map(f)" if isinstance(function, (Iterable, AsyncIterable)) else ""
        raise TypeError(f"a stage needs a function, not {type(function).__name__}{hint}")
    if isinstance(function, Pipeline):
        function.check_callable()
    remote = isinstance(function, BaseTask)
    options = read_options(given, remote=remote)
    stage = FunctionStage(
        function,
        role,
        branch,
        join,
        takes_item,
        options=options,
        explicit="workers" in given,
    )
    check_combination(stage, options)
    if is_stream(function) and not branch:
        name = name_of(function)
        raise TypeError(f"{name!r} is an async generator, and makes many items of one: write flat_map({name})")
    if options.multiprocess:
        from atasks.pipeline.flow.processes import check_picklable

        check_picklable(stage)
    return stage


def check_combination(stage: FunctionStage, options: StageOptions) -> None:
    """Raise a TypeError or a ValueError for options that contradict each other, or the function."""
    name = stage.name
    if stage.is_coroutine and (options.multiprocess or options.inline):
        option = "multiprocess" if options.multiprocess else "inline"
        where = "on workers" if stage.is_remote else "on the event loop"
        raise ValueError(f"{name!r} runs {where}: {option}=True is for plain functions")
    if options.multiprocess and options.inline:
        raise ValueError(f"{name!r} cannot run in processes and on the event loop: choose multiprocess or inline")
    if options.inline and options.timeout is not None:
        raise ValueError(
            f"{name!r} runs on the event loop, which cannot interrupt it: leave inline out to give it a timeout"
        )
    if options.unpack and options.param_name is not None:
        raise ValueError(f"{name!r} gets the item by param_name or unpacked, not both")
    if not options.skip_errors:
        for option in ("on_error", "max_errors"):
            if getattr(options, option) is not None:
                raise ValueError(f"{name!r} drops no items: say skip_errors=True beside {option}")
    if stage.join:
        if stage.is_remote:
            raise TypeError(f"{name!r} is an atask, and a join gets a stream, which cannot be sent: use collect()")
        if options.inline:
            raise ValueError(f"{name!r} would block the event loop while it waits for items: leave inline out")
        if options.workers is None:
            raise ValueError(f"{name!r} is called once per worker: give a join a number of workers")
        for option in ("timeout", "unpack", "param_name", "on_error", "max_errors", "limit"):
            value = getattr(options, option)
            if value is not None and value is not False:
                raise ValueError(f"{name!r} gets a stream, not items: {option} means nothing for a join")


@dataclass(frozen=True)
class GroupStage(CallingStage):
    """Calls several functions with each item, at once, and gives a tuple of their results."""

    members: tuple[FunctionStage, ...]
    lenient: bool = False
    """True if a member that fails gives None."""

    name = "group"
    one_to_one = True
    resets = False

    def runner(self, index: int) -> LoopRunner:
        return _GroupRunner(self, index)


class _GroupRunner(LoopRunner):
    """One runner for each member."""

    def __init__(self, stage: GroupStage, index: int) -> None:
        self.stage = stage  # type: ignore[assignment]  # it is asked for its name and its timeout only
        self.simple = None
        self._lenient = stage.lenient
        self._members = [member.limited(index) for member in stage.members]
        self.ready = self._ready if any(member.ready for member in self._members) else None

    async def _ready(self) -> None:
        for member in self._members:
            if member.ready is not None:
                await member.ready()

    async def start(self) -> None:
        for member in self._members:
            await member.start()

    async def close(self, *, hurry: bool) -> None:
        errors = []
        for member in self._members:
            try:
                await member.close(hurry=hurry)
            except BaseException as error:
                errors.append(error)
        try:
            if errors:
                raise errors[0]
        finally:
            del errors  # no cycle through this frame

    def left(self) -> list[Coroutine[Any, Any, None]]:
        return [left for member in self._members for left in member.left()]

    async def _result(self, value: Any, lineage: Lineage) -> Any:
        tasks = [asyncio.ensure_future(member.call(value, lineage)) for member in self._members]
        try:
            when = asyncio.ALL_COMPLETED if self._lenient else asyncio.FIRST_EXCEPTION
            await asyncio.wait(tasks, return_when=when)
            for member, task in zip(self._members, tasks, strict=True):
                if task.done() and not self._lenient:
                    self._check(member, task)
            return tuple(None if task.cancelled() or task.exception() else task.result() for task in tasks)
        finally:
            pending = [task for task in tasks if not task.done()]
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
            # One error of several is raised; reading the others keeps asyncio from logging them.
            for task in tasks:
                if not task.cancelled():
                    task.exception()

    def _check(self, member: LoopRunner, task: asyncio.Future[Any]) -> None:
        """Raise what the member raised."""
        try:
            task.result()
        except BaseException as error:
            raised = deliverable(error)
            add_note(raised, f"in member {member.stage.name!r} of a group")
            raise raised from raised.__cause__


def make_group(functions: Sequence[Any], skip_errors: bool, given: Mapping[str, Any]) -> GroupStage:
    """The stage of a group, checked. A member is a function, or a pipeline that can be called with an item."""
    if not functions:
        raise ValueError("a group needs at least one function")
    for function in functions:
        if not callable(function):
            given_ = f"{type(function).__name__}: write group(f, g), or group(*functions) for those of a list"
            raise TypeError(f"group takes functions and pipelines, not {given_}")
    if not isinstance(skip_errors, bool):
        raise TypeError(f"skip_errors is True or False, not {skip_errors!r}")
    members = []
    for function in functions:
        stages = function.stages if isinstance(function, Pipeline) else ()
        if len(stages) == 1 and isinstance(stages[0], FunctionStage) and stages[0].one_to_one:
            stages[0].check_first()
            members.append(stages[0])
        else:
            members.append(make_stage(function, {}))
    if given.get("timeout") is not None:
        for member in members:
            if member.options.inline:
                raise ValueError(
                    f"{member.name!r} runs on the event loop, which cannot interrupt it: a group with a timeout "
                    "takes no member with inline=True"
                )
    remote = all(member.is_remote for member in members)
    known = {name: value for name, value in given.items() if name in GroupOptions.__annotations__}
    for name in given.keys() - known.keys():
        raise TypeError(
            f"unknown option {name!r} of a group: {', '.join(GroupOptions.__annotations__)}, skip_errors"
        )
    return GroupStage(
        tuple(members), skip_errors, options=read_options(given, remote=remote), explicit="workers" in given
    )
