"""`ATask` and `StreamTask`: the objects that `@atask` makes of functions."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    cast,
)

from atasks import modules
from atasks.functions import innermost, signature_of
from atasks.namespaces import namespace_item
from atasks.options import Executor, TaskOptions, ViewOptions

if TYPE_CHECKING:
    from atasks.caller.stream import RemoteStream
    from atasks.caller.sync_stream import SyncStream
    from atasks.caller.sync_watched import SyncWatchedCall
    from atasks.caller.watched import WatchedCall
    from atasks.router import Router
    from atasks.submitted.handle import Handle
    from atasks.wire import Call

__all__ = [
    "CALL",
    "ATask",
    "BaseTask",
    "FilledName",
    "InvokedName",
    "StreamTask",
    "Submission",
    "TaskName",
    "WatchedName",
    "Watcher",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
K = TypeVar("K")

CALL: Final = "atask "
"""The beginning of the name of each asyncio task that runs a call; the name of the atask follows."""


class TaskName(str):
    """The name of an atask on its way through `Router.send_request`, with the atask and the options of the call.

    A router may be overridden with a `send_request(name, *args, **kwargs)` that knows of no options: they travel
    with the name, so they apply to this call and to no other one that the override makes.
    """

    __slots__ = ("options", "task")

    task: BaseTask[..., Any] | None
    options: TaskOptions


class FilledName(TaskName):
    """The name of an atask with something that the request of the call is to have."""

    __slots__ = ("fill",)

    fill: Callable[[Call], None]
    """Puts it into the request."""


class InvokedName(FilledName):
    """The name of an atask whose call the middlewares of its caller have seen: they are not asked again."""

    __slots__ = ()


class WatchedName(FilledName):
    """The name of an atask whose caller wants to know how far the call is: its options have a viewer."""

    __slots__ = ()


class BaseTask(Generic[P, K]):
    """The common part of `ATask` and `StreamTask`: everything but their call."""

    streams: ClassVar[bool] = False
    """True if the atask yields items instead of returning a value."""

    def __init__(self, function: Callable[..., Any], name: str, namespace: str, options: TaskOptions) -> None:
        functools.update_wrapper(cast("Any", self), function, updated=())
        own = getattr(function, "__dict__", {})
        self.__dict__.update({key: value for key, value in own.items() if not hasattr(type(self), key)})
        if "__name__" not in self.__dict__:  # a partial, an object that can be called
            self.__name__ = self.__qualname__ = name
        self.name = name
        """The name on the wire: module and qualified name, unless the decoration says otherwise."""
        self._run_name = CALL + name
        self.namespace = namespace
        self.module = _importable_module(function)
        """The module whose import defines this atask; None where there is none (a notebook, say)."""
        self.local: Callable[P, K] = function
        """The undecorated function: calling it runs it here."""
        self._space = namespace_item(namespace)
        self.executor: Executor | None = options.executor
        """The executor of the function at the worker: "thread", "process", or None, on its event loop."""
        self._check_signature = self._check_arguments = _signature_check(function)
        self.limit = options.limit
        """The limit of which a worker takes a token before the body begins; None: no limit."""
        self.has_policies = options.limit is not None or options.retry is not None
        """True if workers have more to do for a call than to run the body."""
        self.resume = options.resume
        """Truthy if a run goes on where the one before it ended."""
        self._is_static = False
        self._set_options(options, {})
        # inspect.iscoroutinefunction() believes an instance that looks like a function (3.11), or a mark (3.12 on)
        self.__code__ = _code(function, inspect.CO_ASYNC_GENERATOR if self.streams else inspect.CO_COROUTINE)
        self.__defaults__ = getattr(function, "__defaults__", None)
        self.__kwdefaults__ = getattr(function, "__kwdefaults__", None)
        if sys.version_info >= (3, 12) and not self.streams:
            inspect.markcoroutinefunction(self)

    def _set_options(self, options: TaskOptions, overrides: dict[str, Any]) -> None:
        self._options = options
        self._overrides = overrides
        known: TaskName | None = self.__dict__.get("_sent_name")
        self._sent_name = TaskName(self.name)
        # Some programs make a view for each call: if a view referred to itself, only the garbage collector could
        # free it.
        self._sent_name.task = self if known is None else known.task
        self._sent_name.options = options

    @property
    def task_options(self) -> TaskOptions:
        """The options that calls of this atask have."""
        return self._options

    def options(self, **changes: Unpack[ViewOptions]) -> Self:
        """A view of this atask whose calls have other options; the atask itself stays as it is.

        Args:
            **changes: Those of `TaskOptions`, but for `executor`, `limit` and `resume`, which a definition alone
                sets.

        Raises:
            TypeError: An option is unknown, is set by the definition alone, or has a value of another type.
            ValueError: An option has a value that it does not take.
        """
        for name in ("executor", "limit", "resume"):
            if name in changes:
                raise TypeError(
                    f"{name!r} is set where the atask is defined, and .options() cannot change it: "
                    f"write @atask({name}=...)"
                )
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        extra = self._space.router.extra_options
        view._set_options(self._options.with_changes(changes, extra), {**self._overrides, **changes})
        return view

    def __set_name__(self, owner: type, name: str) -> None:
        if not self._is_static and f"{owner.__qualname__}.{name}" == getattr(self, "__qualname__", None):
            raise TypeError(_METHOD.format(f"{owner.__qualname__}.{name}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.module, self.namespace, self.name, self._overrides)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        changed = "".join(f", {name}={value!r}" for name, value in self._overrides.items())
        return f"<atask {self.name!r}{changed}>"


class ATask(BaseTask[P, Coroutine[None, object, R]], Generic[P, R]):
    """A decorated function. Awaiting `task(...)` runs it on a worker and gives its result or raises its exception.

    Calling it checks the arguments against the signature (a TypeError at once, before anything is sent) and
    returns a coroutine that does nothing until it is awaited or made a task. How an await can end is listed in
    `atasks.errors`. An ATask pickles as a reference (module, namespace, name, overrides), never by value.
    """

    # Not Coroutine[Any, Any, R]: with Any in it, mypy gives up on asyncio.gather of different types.
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, object, R]:
        """A coroutine that runs the atask on a worker. Raises TypeError at once if the arguments do not fit."""
        self._check_arguments(*args, **kwargs)
        made: Any = self._space.router.send_request(self._sent_name, *args, **kwargs)
        coroutine: Coroutine[None, object, R] = made
        try:
            made.__qualname__ = self.name  # for tasks, and for "coroutine 'app.add' was never awaited"
        except AttributeError:  # another awaitable, of a router that is overridden
            return coroutine
        return coroutine

    def sync(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the atask on a worker, from code without an event loop, and return its result.

        Blocks this thread until the call has ended, as an await of it would end. A `KeyboardInterrupt` meanwhile
        cancels the call. Inside an atask with `executor="thread"` it goes over the worker's connection, and the
        run is parked meanwhile; elsewhere it needs `atasks.connect_sync`.

        Args:
            *args: The arguments of the function, in its signature's types.
            **kwargs: Those by keyword.

        Returns:
            What the function returned.

        Raises:
            Exception: What an await of the call raises: the function's own exception, or a `CallError`.
            RuntimeError: An event loop runs in this thread: await it there.
            NotConnected: There is no connection: open `atasks.connect_sync`.
            NotSupported: Inside an atask with `executor="process"`.
        """
        self._check_arguments(*args, **kwargs)
        return cast("R", self._space.router.send_request_sync(self._sent_name, args, kwargs))

    @property
    def watch(self) -> Watcher[P, R]:
        """A call whose progress can be followed: `async with task.watch(...) as call`. It begins with the block;
        `call.progress()` are its reports, and `await call` its result. Leaving the block ends the call. Arguments
        are those of the function; it is a TypeError at once if they do not fit.

        For code without an event loop: `with task.watch.sync(...) as call`, and `call.result()`.

        Example:
            ```python
            from atasks import atask, current_call

            @atask
            async def convert(pages: int) -> str:
                current_call().report(pages, pages)
                return "book.pdf"

            async with convert.watch(3) as call:
                print([str(progress) async for progress in call.progress()], await call)  # ['3/3'] book.pdf
            ```
        """
        return Watcher(self)

    @property
    def submit(self) -> Submission[P, R]:
        """Hands a call over to the workers without awaiting its result: `handle = await task.submit(...)`."""
        return Submission(self)

    def _prepare_submission(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Router, str, Callable[[], Coroutine[Any, Any, Any]]]:
        """For `Submission`: the router, a name for messages, and what submits. Raises TypeError."""
        self._check_signature(*args, **kwargs)
        router = self._space.router
        return router, self.name, functools.partial(router.submit, self._sent_name, *args, **kwargs)

    def on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Submit a call when the database transaction that is open here has committed; if it rolls back nothing
        happens. Outside of a transaction it is submitted now. Does not wait: see `submit.soon`.

        Args:
            *args: The arguments of the function, in its signature's types.
            **kwargs: Those by keyword.

        Raises:
            TypeError: The arguments do not fit; at once.
            NotSupported: There is no framework that tells of its transactions, as Django does with the app
                `atasks.contrib.django`.
        """
        router, name, submit = self._prepare_submission(args, kwargs)
        router.submit_after_commit(name, submit)

    def _set_options(self, options: TaskOptions, overrides: dict[str, Any]) -> None:
        self._check_arguments = self._refuse if options.only_submits else self._check_signature
        super()._set_options(options, overrides)

    def _refuse(self, /, *args: Any, **kwargs: Any) -> None:
        """Raise the TypeError of a plain call with options that only a submitted one has."""
        raise TypeError(
            "delay=, at= and unique= are for calls that are submitted: "
            f"await {self.__name__}.options(...).submit(...)"
        )


class Submittable(Protocol):
    """An atask with its options, or a pipeline."""

    def _prepare_submission(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Router, str, Callable[[], Coroutine[Any, Any, Any]]]:
        """Check the arguments, and return the router, a name for messages, and a function that submits."""
        ...


class Submission(Generic[P, R]):
    """Submits calls of one atask, with the options that it has here, or runs of one pipeline: `task.submit`,
    `task.options(...).submit`, `pipeline.submit`."""

    __slots__ = ("_of",)

    def __init__(self, of: Submittable) -> None:
        self._of = of

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, object, Handle[R]]:
        """Submit a call, or a run. The coroutine returns a handle when it is safe: at the broker, whether a worker
        ever declared its queue or not, or in the memory of the hub or of this process.

        The call runs whether anybody awaits it or not, and its failure is logged by its worker. `timeout` counts
        from when a worker takes it. Cancelling the coroutine may come too late to keep the call from running.

        Raises TypeError at once if the arguments do not fit; awaiting raises NotConnected, NotSupported where the
        transport keeps no records, AlreadySubmitted, and what an await of the atask raises before anything is
        sent.
        """
        return self._of._prepare_submission(args, kwargs)[2]()

    def sync(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Submit from code without an event loop, and return the handle when the call, or the run, is safe.

        Raises what submitting it in an event loop raises, and RuntimeError where an event loop runs.
        """
        router, name, submit = self._of._prepare_submission(args, kwargs)
        handle: Handle[R] = router.run_sync(f"{name}.submit.sync()", "`await` submit()", submit)
        return handle

    def soon(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Submit without waiting until the call, or the run, is safe, from a thread or an event loop.

        Guarantees: a connection that is closed waits for up to 5 s until such calls are safe, and so does a
        program that ends. One that cannot be submitted is logged as an error; one of a process that is killed is
        lost. Arguments are encoded later: do not change them.

        Raises TypeError at once if the arguments do not fit, and NotConnected.
        """
        router, name, submit = self._of._prepare_submission(args, kwargs)
        router.submit_soon(name, submit)

    def __repr__(self) -> str:
        return f"<submission of {self._of!r}>"


class Watcher(Generic[P, R]):
    """Makes calls of one atask whose progress can be followed, with the options that it has here: `task.watch`."""

    __slots__ = ("_task",)

    def __init__(self, task: ATask[P, R]) -> None:
        self._task = task

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> WatchedCall[R]:
        """Return a call that begins with its `async with` block. Raises TypeError at once if the arguments do not
        fit."""
        task = self._task
        task._check_arguments(*args, **kwargs)
        return cast("WatchedCall[R]", task._space.router.watch(task._sent_name, args, kwargs))

    def sync(self, /, *args: P.args, **kwargs: P.kwargs) -> SyncWatchedCall[R]:
        """Return such a call for code without an event loop, which begins with its `with` block.

        Needs `atasks.connect_sync`, as `ATask.sync` does. Raises TypeError at once if the arguments do not fit.
        """
        return cast("SyncWatchedCall[R]", self._task._space.router.watch_sync(self(*args, **kwargs)))

    def __repr__(self) -> str:
        return f"<watcher of {self._task!r}>"


class StreamTask(BaseTask[P, AsyncGenerator[T, None]], Generic[P, T]):
    """A decorated async generator function: `async for item in task(...)` runs it on a worker.

    Calling it checks the arguments against the signature (a TypeError at once, before anything is sent) and
    returns a `RemoteStream` that does nothing until its first item is asked for. It pickles as an ATask does.
    """

    streams = True

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> RemoteStream[T]:
        """The stream of its items. Raises TypeError at once if the arguments do not fit, or if it is called to be
        a context manager."""
        if sys._getframe(1).f_code is _MANAGING:
            raise TypeError(_CONTEXT_MANAGER.format(self.name))
        self._check_arguments(*args, **kwargs)
        stream: RemoteStream[T] = self._space.router.stream(self._sent_name, *args, **kwargs)
        return stream

    def sync(self, /, *args: P.args, **kwargs: P.kwargs) -> SyncStream[T]:
        """The stream of its items, for code without an event loop: `for item in task.sync(...)`.

        Needs `atasks.connect_sync`, as `ATask.sync` does. Raises TypeError at once if the arguments do not fit, or
        if it is called to be a context manager.
        """
        if sys._getframe(1).f_code is _MANAGING:
            raise TypeError(_CONTEXT_MANAGER.format(self.name))
        stream = self(*args, **kwargs)
        return cast("SyncStream[T]", self._space.router.stream_sync(stream))

    def _set_options(self, options: TaskOptions, overrides: dict[str, Any]) -> None:
        if options.orphan == "run":
            raise ValueError("orphan='run' is not for a stream: without a consumer it cannot go on")
        if options.only_submits or options.keep is not None:
            raise ValueError(
                "keep=, delay=, at= and unique= are not for a stream: it is not submitted, but iterated over"
            )
        super()._set_options(options, overrides)


_METHOD = (
    "{0} is a method: an atask runs on a worker, which has no 'self'. "
    "Make it a function or a @staticmethod and pass what it needs as arguments"
)


_CONTEXT_MANAGER = (
    "{0} cannot be a context manager, nor a dependency with a yield: its generator runs on a worker, ahead of its "
    "consumer, and would go on after the yield although the body here has raised. Write the context manager as a "
    "plain async generator function of this program, and await atasks in it"
)


_MANAGING = cast("Any", contextlib._GeneratorContextManagerBase).__init__.__code__
"""The code that calls a generator function to make a context manager of it."""


def _importable_module(function: Any) -> str | None:
    module: str | None = getattr(function, "__module__", None)
    if module not in modules.MAIN_NAMES:
        return module
    scope = getattr(innermost(function), "__globals__", None)
    if module == "__main__" and scope is not None and not modules.adopt(scope):
        return None
    return modules.main_name()


def _signature_check(function: Any) -> Callable[..., None]:
    """A function with the signature of `function` that does nothing: calling it checks arguments as Python does.

    An order of magnitude faster than `inspect.Signature.bind`, with Python's own messages.
    """
    try:
        signature = signature_of(function)
    except (TypeError, ValueError):  # some builtins have none: the worker will find out
        return lambda *args, **kwargs: None
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=parameter.default if parameter.default is parameter.empty else None,
        )
        for parameter in signature.parameters.values()
    ]
    bare = signature.replace(parameters=parameters, return_annotation=signature.empty)
    scope: dict[str, Any] = {}
    exec(f"def check{bare}: pass", scope)
    check: Callable[..., None] = scope["check"]
    check.__qualname__ = getattr(function, "__qualname__", repr(function))
    return check


def _code(function: Any, flag: int) -> Any:
    """The function's code, marked as that of a coroutine function, or of an async generator function."""
    code = getattr(function, "__code__", None) or _template.__code__
    kinds = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return code.replace(co_flags=code.co_flags & ~kinds | flag)


async def _template(*args: Any, **kwargs: Any) -> None:
    """The code of an atask whose function has none (a builtin, a partial)."""


def _registered(namespace: str, name: str) -> Any:
    """The item of an atask in its namespace; None: there is none."""
    registry = getattr(namespace_item(namespace), "registry", None)
    return None if registry is None else registry.get(name)


def _restore(module: str | None, namespace: str, name: str, overrides: dict[str, Any]) -> BaseTask[..., Any]:
    """The atask that a pickle refers to, importing its module if need be."""
    import importlib

    item = _registered(namespace, name)
    if item is None and module is not None:
        importlib.import_module(module)
        item = _registered(namespace, name)
    if item is None:
        raise LookupError(f"no atask {name!r} in namespace {namespace!r} here: import the module that defines it")
    task: BaseTask[..., Any] = item.task
    return task.options(**cast("ViewOptions", overrides)) if overrides else task


_restore.__module__ = "atasks.tasks"  # its name in pickles of every version
