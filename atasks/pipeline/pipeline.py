"""Stages and pipelines, which make each other by `|`: immutable, composable, callable."""

from __future__ import annotations

import base64
import binascii
import pickle
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, TypeVar, cast, overload

from atasks.definitions import Submission
from atasks.errors import PipelineError
from atasks.pipeline.flow.channel import Channel, Inlet
from atasks.pipeline.flow.invocation import Start, name_of
from atasks.pipeline.flow.ordering import Window
from atasks.pipeline.flow.source import IterableSource, SingleSource
from atasks.pipeline.pipe import Pipe
from atasks.pipeline.plan import CustomCrew, Step
from atasks.pipeline.run import Many, One, Run

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine
    from atasks.router import Router

__all__ = ["Batches", "Consumer", "InOrder", "Pipeline", "Stage", "Whole"]

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
J = TypeVar("J")
X = TypeVar("X")

_DUMP = "atasks-pipeline-1:"


class Stage(Pipe):
    """A step of a pipeline.

    To make one of your own, subclass it, give it a `name`, and write `run` as an async generator: it gets the
    stream and yields what goes on. It runs once, on the event loop; what it yields is numbered anew. A dataclass
    is best: then pipelines with it can be compared.

        @dataclass(frozen=True)
        class Every(Stage):
            n: int
            name = "every"

            async def run(self, stream):
                async for item in stream: ...
    """

    name: str = "step"
    """The name of the stage in messages."""
    one_to_one: bool = False
    """True if the stage gives exactly one item for each one."""
    makes_one: bool = False
    """True if the stage gives exactly one item, whatever it gets."""
    resets: bool = True
    """True if the stage numbers its items anew."""

    counts: bool = False
    """True if the stage is done with as many items as go in."""
    takes_arguments: bool = False
    """True if the stage can be called with more than one item, as the first stage of a pipeline that is called."""
    deepens: int = 0
    """The count of numbers that the stage appends to the lineage of an item."""

    def run(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield what goes on. Raise to fail; return to end the run, then nothing more is taken from the stream."""
        raise NotImplementedError(f"{type(self).__name__} has no run(): write it as an async generator")

    def make_window(self) -> Window | None:
        """Return the bound on items that wait for their turn in this stage, if it puts items in order; else
        None."""
        return None

    def branches(self) -> Sequence[Sequence[Stage]]:
        """The stages of the pipelines inside of it that get its items."""
        return ()

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        """Start it in one run, and return where its items come out."""
        outlet = Channel(1)
        engine.add(CustomCrew(engine, self, inlet, outlet, step.windows))
        return outlet

    def check_first(self) -> None:
        """Raise a ValueError if it cannot be the first stage of a pipeline that is called with arguments."""

    def __or__(self, other: Any) -> Any:
        return Pipeline(self) | other

    def __ror__(self, source: Any) -> Any:
        return source | Pipeline(self)


class _Submit:
    """`Pipeline.submit`: for type checkers, awaiting the handle gives one item, or a list."""

    @overload
    def __get__(self, pipeline: None, owner: type) -> _Submit: ...
    @overload
    def __get__(self, pipeline: Pipeline[P, X, One], owner: type) -> Submission[P, X]: ...
    @overload
    def __get__(self, pipeline: Pipeline[P, X, Many], owner: type) -> Submission[P, list[X]]: ...
    def __get__(self, pipeline: Any, owner: type) -> Any:
        return self if pipeline is None else Submission(pipeline)


class Pipeline(Pipe, Generic[P, T, K]):
    """A tuple of stages, and a function over streams: `source | pipeline` and `pipeline(...)` give a `Run`.

    It never changes, runs as often as it is asked to, and can be extended: `pipeline | other`. For type checkers
    `P` is what it is called with, `T` an item that comes out, and `K` says whether awaiting a call gives it
    (`One`) or a list (`Many`).
    """

    __array_ufunc__ = None  # so that numpy leaves `array | pipeline` to us
    __pandas_priority__ = 1_000_000  # and pandas its series, indexes and frames

    def __init__(self, *stages: Stage) -> None:
        for stage in stages:
            if not isinstance(stage, Stage):
                raise TypeError(f"a pipeline consists of stages, not of {type(stage).__name__}: write stage(f)")
        self._stages = stages

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the pipeline, in their order."""
        return self._stages

    @property
    def __name__(self) -> str:
        """The name in messages, where this is a stage of another pipeline."""
        return f"pipeline ({' | '.join(stage.name for stage in self._stages)})"

    # -- running it

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Run[T, K]:
        """A run over one item: the arguments, with which the first stage calls its function.

        Raises ValueError if the first stage needs a stream (a join, several workers, collect).
        """
        self.check_callable()
        first = self._stages[0]
        item: Any = Start(args, kwargs)
        if not first.takes_arguments:
            if len(args) != 1 or kwargs:
                raise TypeError(f"a pipeline that begins with {first.name!r} is called with one item")
            item = args[0]
        return Run(SingleSource(item), self._stages, called=True)

    submit = _Submit()
    """Has the workers run it over these arguments: `handle = await pipeline.submit(...)` returns a handle of that
    run as soon as it is safe, `pipeline.submit.sync(...)` does so in code without an event loop, and
    `pipeline.submit.soon(...)` waits for nothing.

    Guarantees: the run goes on when this process ends, and when workers do; calls of it that were running may then
    run again. Where the results are kept in a process, the hub's say, it ends with that process. Stages that hand
    on many items overlap. What it gives is kept for as long as the transport's `keep_runs` says, and can be read
    again and again. No worker need be there, unless the first atask has `on_no_worker="error"`.

    Its stages are atasks, and filter, flat_map, each, after, collect, group, fork and ordered over them. Raises
    TypeError at once for a local function, and for arguments that the first stage does not take, ValueError for a
    pipeline without stages; awaiting raises NotConnected, NotSupported, EncodeError, QueueFull."""

    def _prepare_submission(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Router, str, Callable[[], Coroutine[Any, Any, Any]]]:
        """For `Submission`: the router, a name for messages, and what submits. Raises TypeError, ValueError."""
        from atasks.pipeline.submitted.submit import prepare

        return prepare(self, args, kwargs)

    def check_callable(self) -> None:
        """Raise a ValueError if it cannot be called with arguments."""
        if not self._stages:
            raise ValueError("a pipeline without stages cannot be called: add some, pipeline | stage(f)")
        self._stages[0].check_first()

    # `self` as what it can be called with: a function of more parameters with defaults takes an item as well.
    def __ror__(
        self: Callable[[X], Run[U, Any]],  # pyright: ignore[reportGeneralTypeIssues]
        source: Iterable[X] | AsyncIterable[X],
    ) -> Run[U, Many]:
        """A run over the items of an iterable, or of an async iterable. A run as the source goes on with these
        stages."""
        stages = cast("Pipeline[..., U, Any]", self).stages
        return source.followed_by(stages) if isinstance(source, Run) else Run(IterableSource(source), stages)

    def __getitem__(self, index: Never) -> Never:
        """Raises TypeError. The views of a dict come here, because they take `|` for a union of their own."""
        raise TypeError(
            "a pipeline cannot be iterated: call it, or give it a source, source | pipeline. The keys and items "
            "of a dict take | for their own: write from_iterable(keys) | pipeline"
        )

    # -- extending it

    @overload
    def __or__(self, other: InOrder) -> Pipeline[P, T, K]: ...
    @overload
    def __or__(self, other: Whole) -> Pipeline[P, list[T], One]: ...
    @overload
    def __or__(self, other: Batches) -> Pipeline[P, list[T], Many]: ...
    @overload
    def __or__(self: Pipeline[P, X, One], other: Callable[[X], Run[U, J]]) -> Pipeline[P, U, J]: ...
    @overload
    def __or__(self: Pipeline[P, X, Many], other: Callable[[X], Run[U, Any]]) -> Pipeline[P, U, Many]: ...
    def __or__(self, other: Any) -> Any:
        """Both, one behind the other."""
        if isinstance(other, Stage):
            return Pipeline(*self._stages, other)
        if not isinstance(other, Pipeline):
            name = name_of(other)
            raise TypeError(
                f"pipeline | {name} joins a pipeline and something else: write pipeline | stage({name}), or "
                f"pipeline.consume({name}) to give {name} the run"
            )
        return Pipeline(*self._stages, *other._stages)

    def pipe(self, other: Any) -> Any:
        """Like `|`."""
        return self | other

    def consume(self, function: Callable[[Run[T, K]], U]) -> Consumer[P, U]:
        """A function that calls the pipeline and gives the run to `function`."""
        return Consumer(self, function)

    def __gt__(self, function: Callable[[Run[T, K]], U]) -> Consumer[P, U]:
        """Like `consume`."""
        return self.consume(function)

    # -- as a string

    def dumps(self) -> str:
        """The pipeline as a string: functions by reference, those that cannot be imported by value.

        Raises PipelineError, which names the stage, for what cannot be pickled.
        """
        from atasks.pipeline.flow.pickling import to_bytes

        for stage in self._stages:
            try:
                to_bytes(stage)
            except Exception as error:
                raise PipelineError(f"stage {stage.name!r} cannot be pickled: {error}") from error
        return _DUMP + base64.b64encode(to_bytes(self._stages)).decode()

    @staticmethod
    def loads(text: str) -> Pipeline[..., Any, Any]:
        """The pipeline that `dumps` was called on. Loading runs what the string says: take none from strangers.

        Raises TypeError if it is no string, PipelineError if it is no dump, or one that cannot be loaded here.
        """
        if not isinstance(text, str):
            raise TypeError(f"a dump is a string, not {type(text).__name__}")
        if not text.startswith(_DUMP):
            raise PipelineError("this is no dump of a pipeline, or one of another version of atasks")
        try:
            stages = pickle.loads(base64.b64decode(text.removeprefix(_DUMP), validate=True))
            return Pipeline(*stages)
        except binascii.Error as error:
            raise PipelineError("this dump of a pipeline is damaged") from error
        except Exception as error:
            raise PipelineError(f"this dump of a pipeline cannot be loaded here: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, self._stages

    # -- comparing it

    def __eq__(self, other: object) -> bool:
        """Return True if the stages are equal; functions that travel by value are equal if their pickles are."""
        if not isinstance(other, Pipeline):
            return NotImplemented
        if self._stages == other._stages:
            return True
        if [stage.name for stage in self._stages] != [stage.name for stage in other._stages]:
            return False
        return all(
            one == another or _same_pickle(one, another)
            for one, another in zip(self._stages, other._stages, strict=True)
        )

    def __hash__(self) -> int:
        return hash(tuple(stage.name for stage in self._stages))

    def __repr__(self) -> str:
        return f"<{self.__name__}>"


def _same_pickle(one: Stage, another: Stage) -> bool:
    from atasks.pipeline.flow.pickling import to_bytes

    try:
        # Twice, because a pickle also tells which of its strings are one object: loading evens that out.
        first, second = [to_bytes(pickle.loads(to_bytes(stage))) for stage in (one, another)]
    except Exception:  # what cannot be pickled is equal to itself alone
        return False
    return first == second


class InOrder(Pipeline[[Any], Any, One]):
    """The result of `ordered()`: for type checkers, items go through it as they are."""


class Whole(Pipeline[[Any], list[Any], One]):
    """The result of `collect()`."""


class Batches(Pipeline[[Any], list[Any], Many]):
    """The result of `collect(n)`."""


class Consumer(Generic[P, U]):
    """Calls a pipeline and gives the run to a function. Made by `pipeline > function`."""

    def __init__(self, pipeline: Pipeline[P, Any, Any], function: Callable[[Any], U]) -> None:
        if not callable(function):
            raise TypeError(f"pipeline > f takes a function of a run, not {type(function).__name__}")
        self._pipeline = pipeline
        self._function = function

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> U:
        return self._function(self._pipeline(*args, **kwargs))

    def __bool__(self) -> Never:
        raise TypeError(
            "pipeline > f > g compares in a chain, which Python reads as (pipeline > f) and (f > g): "
            "write pipeline.consume(f), and call g with what that returns"
        )

    def __repr__(self) -> str:
        return f"<{self._pipeline!r} > {name_of(self._function)}>"
