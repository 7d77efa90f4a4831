"""Middleware: code around every call of a namespace, at its caller and at its worker."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from atasks.caller.budget import Budget
from atasks.caller.stream import RemoteStream
from atasks.current import new_call_id, serving_here
from atasks.definitions import InvokedName
from atasks.errors import CallTimeout
from atasks.namespaces import namespace_item, namespaces
from atasks.options import validate_name, validate_queue
from atasks.router import Router, get_router

if TYPE_CHECKING:
    from atasks.definitions import BaseTask
    from atasks.options import TaskOptions
    from atasks.wire import Call

__all__ = ["Invocation", "Middleware", "use"]

T = TypeVar("T")

Proceed = Callable[[], Awaitable[Any]]

STOPPED: Final = "a middleware raised StopAsyncIteration"
MAX_HEADERS: Final = 64
"""Headers of one call."""
MAX_HEADER_BYTES: Final = 2**16
"""Bytes of the names and values of all headers of one call."""


class Invocation:
    """A call, as a middleware sees it.

    Before `proceed()` a middleware may change `args`, `kwargs` and, at the caller, `headers`. The other attributes
    say which call it is.
    """

    __slots__ = (
        "args",
        "attempt",
        "headers",
        "id",
        "kwargs",
        "name",
        "parent_id",
        "queue",
        "root_id",
        "submitted",
        "task",
    )

    def __init__(
        self,
        task: BaseTask[..., Any] | None,
        name: str,
        id: str,
        root_id: str,
        parent_id: str | None,
        attempt: int,
        queue: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, str],
        submitted: bool = False,
    ) -> None:
        self.task = task
        """The atask; None at a caller that knows it by name only."""
        self.name = name
        """The name on the wire."""
        self.id = id
        """The id of the call. At the caller each further `proceed()` is a call of its own, with a new id."""
        self.root_id = root_id
        """The call at the top of the chain; the id of this call if no other one made it."""
        self.parent_id = parent_id
        """The call that awaits this one, or None."""
        self.attempt = attempt
        """1, and one more for each worker that died while it held the call."""
        self.queue = queue
        """The work queue."""
        self.args = tuple(args)
        self.kwargs = dict(kwargs)
        self.headers = dict(headers)
        """Texts that travel with the call. The worker sees what the caller wrote; nothing travels back."""
        self.submitted = submitted
        """At the caller: whether nobody awaits the call, and `proceed()` returns when it is safe."""

    def __repr__(self) -> str:  # without the arguments
        return f"<Invocation of {self.name!r}, call {self.id}>"


class Middleware:
    """Code around calls. Override one method or both; `atasks.use` puts it around the calls of a namespace.

    `proceed()` gives the result of the call or raises its exception; the method returns the result, or another
    one. For a stream the result is an async iterator, which may be wrapped. An exception of a middleware is the
    call's own exception. Its time is within the deadline of the call.

    Example:
        ```python
        import atasks
        from atasks import Middleware, atask

        class Doubled(Middleware):
            async def run(self, call, proceed):
                return 2 * await proceed()

        atasks.use(Doubled(), namespace="doubled")

        @atask(namespace="doubled")
        async def one() -> int:
            return 1

        async with atasks.connect("loopback:", namespace="doubled"):
            print(await one())  # 2
        ```
    """

    async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Around an await of an atask, at its caller.

        Args:
            call: The call, without its payload.
            proceed: Makes the call and returns its result, or raises; each further one makes another call.

        Returns:
            What the await is to return.

        Raises:
            Exception: What the await is to raise.
        """
        return await proceed()

    async def run(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Around a run of an atask, at its worker. The function sees the context variables that are set here.

        Args:
            call: The call that is served.
            proceed: Runs the function and returns its result, or raises.

        Returns:
            What the call is to return.

        Raises:
            Exception: What the call is to raise.
        """
        return await proceed()

    def run_blocking(self, call: Invocation, proceed: Callable[[], Any]) -> Any:
        """Around a function of `executor="thread"` or `"process"`, in the thread that runs it, within `run`.

        For what belongs to a thread, as connections of blocking drivers do.

        Args:
            call: The call that is served.
            proceed: Runs the function; returns or raises as it does.

        Returns:
            What the call is to return.
        """
        return proceed()


def use(middleware: Middleware, namespace: str = "default") -> None:
    """Put a middleware around every call of the namespace from now on, inside of those that are there already.

    What it does not override costs nothing. An atask with `executor="process"` runs inside of copies that are made
    when its process starts: use a middleware before the first call, and keep it picklable there.

    Args:
        middleware: An instance of a subclass of `Middleware`.
        namespace: The namespace of the calls.

    Raises:
        TypeError: It is no such instance.
    """
    given: object = middleware
    if not isinstance(given, Middleware):
        hint = "not the class itself" if isinstance(given, type) else f"not {type(given).__name__}"
        raise TypeError(f"atasks.use() takes an instance of a subclass of atasks.Middleware, {hint}")
    validate_queue(namespace, "namespace")
    get_router(namespace)
    space = namespace_item(namespace)
    if type(middleware).call is not Middleware.call:
        namespaces.register(namespace, around_calls=AroundCalls(_more(space.around_calls, middleware)))
    if type(middleware).run is not Middleware.run or _around_blocking(middleware):
        namespaces.register(namespace, around_runs=AroundRuns(_more(space.around_runs, middleware)))


def _around_blocking(middleware: Middleware) -> bool:
    return type(middleware).run_blocking is not Middleware.run_blocking


def _more(around: AroundCalls | AroundRuns | None, middleware: Middleware) -> tuple[Middleware, ...]:
    return (*(() if around is None else around.middlewares), middleware)


def _fill(
    invocation: Invocation, key: str, tries: int, deadline: float | None, options: TaskOptions, call: Call
) -> None:
    """Give the call the id and the headers of its invocation, and the time that is left. Raises CallTimeout, and
    TypeError or ValueError for headers that cannot travel."""
    call.id = invocation.id
    if tries > 1:
        call.key, call.try_ = key, tries
    call.headers = _checked(invocation.headers) or None
    call.reports = options.viewer is not None
    if deadline is not None:
        left = round((deadline - asyncio.get_running_loop().time()) * 1000)
        if left <= 0:
            raise CallTimeout(f"no time is left for {call.task}: the middlewares at its caller took it")
        call.timeout_ms = left if call.timeout_ms is None else min(left, call.timeout_ms)


def _checked(headers: dict[str, str]) -> dict[str, str]:
    """The headers, if a message can carry them. Errors do not quote values."""
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"a call has {len(headers)} headers: at most {MAX_HEADERS}")
    size = 0
    for name, value in headers.items():
        validate_name(name, "the name of a header")
        if not isinstance(value, str):
            raise TypeError(f"the value of header {name!r} is a string, not {type(value).__name__}")
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise ValueError(f"the value of header {name!r} has characters that no message can carry") from None
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"the headers of a call have {size} bytes: at most {MAX_HEADER_BYTES}")
    return headers


def _nested(
    middlewares: Sequence[Middleware], method: str, call: Invocation, innermost: Proceed
) -> Awaitable[Any]:
    """Await the middlewares, the first one outermost, around `innermost`."""
    proceed = innermost
    for middleware in reversed(middlewares):
        proceed = functools.partial(getattr(middleware, method), call, proceed)
    return proceed()


class AroundCalls:
    """The middlewares around the calls that this process makes in a namespace."""

    def __init__(self, middlewares: tuple[Middleware, ...]) -> None:
        self.middlewares = middlewares

    async def call(self, router: Router, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of the call."""

        async def send(name: InvokedName, /, *args: Any, **kwargs: Any) -> Any:
            return await Router.send_request(router, name, *args, **kwargs)

        task, options = router._named(name)
        return await self.around(router, name, task, options, args, kwargs, send)

    async def around(
        self,
        router: Router,
        name: str,
        task: BaseTask[..., Any] | None,
        options: TaskOptions,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        send: Callable[..., Awaitable[Any]],
        *,
        submitted: bool = False,
        call_id: str | None = None,
    ) -> Any:
        """Make the call of that name inside the middlewares: returns or raises what they make of `await
        send(name, *args, **kwargs)`. `call_id`: its id; None: a new one."""
        call = self._invocation(router, name, task, options, args, kwargs, submitted, call_id)
        budget = Budget(call.name, options.timeout)
        key, tries = call.id, 0

        async def proceed() -> Any:
            nonlocal tries
            tries += 1
            if tries > 1:  # workers answer the same id with the same reply
                call.id = new_call_id()
                if call.parent_id is None:
                    call.root_id = call.id
            invoked = InvokedName(call.name)
            invoked.task, invoked.options = task, options
            invoked.fill = functools.partial(_fill, call, key, tries, budget.deadline, options)
            with budget.inside():
                return await send(invoked, *call.args, **call.kwargs)

        return await budget.hold(_nested(self.middlewares, "call", call, proceed))

    def stream(
        self, router: Router, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> RemoteStream[Any]:
        """The items of a stream."""
        return AroundStream(self, router, name, args, kwargs)

    def _invocation(
        self,
        router: Router,
        name: str,
        task: BaseTask[..., Any] | None,
        options: TaskOptions,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        submitted: bool,
        call_id: str | None = None,
    ) -> Invocation:
        run = serving_here()
        call_id = call_id or new_call_id()
        parent = root = None
        if run is not None and not submitted:
            parent, root = run.call.id, run.call.root or run.call.id
        queue = options.queue or str(getattr(router._transport(run), "queue", "default"))
        return Invocation(task, str(name), call_id, root or call_id, parent, 1, queue, args, kwargs, {}, submitted)


class AroundStream(RemoteStream[T]):
    """The items of a stream, as the middlewares at its caller hand them on."""

    def __init__(
        self, around: AroundCalls, router: Router, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(router, name, args, kwargs)
        self._around = around
        self._inner: list[RemoteStream[T]] = []
        self._iterator: AsyncIterator[T] | None = None

    async def __anext__(self) -> T:
        self._claim()
        try:
            if self._iterator is None:
                self._iterator = aiter(await self._begun())
            return await anext(self._iterator)
        except BaseException:
            await self._end()
            raise
        finally:
            self._busy = False

    async def aclose(self) -> None:
        """Want no more items: the middlewares' iterators are closed, and the generator at the worker."""
        if self._busy:
            raise RuntimeError("aclose(): this stream is being read by another task")
        self._busy = True
        try:
            await self._end()
        finally:
            self._busy = False

    async def athrow(self, *error: Any) -> T:
        """Close the stream, and raise NotSupported: nothing can be thrown into a generator on a worker."""
        await self._end()
        return await super().athrow(*error)

    async def _begun(self) -> Any:
        if self._arguments is None:
            raise StopAsyncIteration
        (args, kwargs), self._arguments = self._arguments, None
        self._loop = asyncio.get_running_loop()
        task, options = self._router._named(self._name)
        try:
            return await self._around.around(
                self._router, self._name, task, options, args, kwargs, self._open_inner
            )
        except StopAsyncIteration as error:  # which would be the end of a stream without items
            raise RuntimeError(STOPPED) from error

    async def _open_inner(self, name: InvokedName, /, *args: Any, **kwargs: Any) -> RemoteStream[T]:
        stream: RemoteStream[T] = Router.stream(self._router, name, *args, **kwargs)
        self._inner.append(stream)
        return stream

    async def _end(self) -> None:
        self._arguments = None
        iterator, self._iterator = self._iterator, None
        try:
            await _closed(iterator)
        finally:
            inner, self._inner = self._inner, []
            for stream in inner:
                stream._close()


async def _closed(iterator: Any) -> None:
    """Close an async iterator, if it can be closed."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


class AroundRuns:
    """The middlewares around the runs of a namespace's atasks in this process. Pickled for the processes of
    `executor="process"`."""

    def __init__(self, middlewares: tuple[Middleware, ...]) -> None:
        self.middlewares = middlewares
        self._blocking = tuple(middleware for middleware in reversed(middlewares) if _around_blocking(middleware))

    async def run(
        self,
        call: Call,
        task: BaseTask[..., Any] | None,
        queue: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        body: Callable[..., Awaitable[Any]],
    ) -> Any:
        """Run the body inside the middlewares: returns or raises what they make of `await body(inside, *args,
        **kwargs)`; for a stream, an iterator that can be closed. The body of a blocking function has a thread call
        `inside(function)` in its place."""
        invocation = Invocation(
            task,
            call.task,
            call.id,
            call.root or call.id,
            call.parent,
            call.attempt,
            queue,
            args,
            kwargs,
            call.headers or {},
        )
        made: list[Any] = []
        inside = functools.partial(self._inside, invocation)

        async def proceed() -> Any:
            result = await body(inside, *invocation.args, **invocation.kwargs)
            if call.credit:
                made.append(result)
            return result

        try:
            result = await _nested(self.middlewares, "run", invocation, proceed)
        except BaseException as error:
            for generator in made:
                await _closed(generator)
            if call.credit and isinstance(error, StopAsyncIteration):
                raise RuntimeError(STOPPED) from error
            raise
        return ItemsOfRun(result, made) if call.credit else result

    def _inside(self, call: Invocation, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what the middlewares put around it in its thread."""
        if not self._blocking:
            return function

        def run(*args: Any, **kwargs: Any) -> Any:
            proceed = functools.partial(function, *args, **kwargs)
            for middleware in self._blocking:
                proceed = functools.partial(middleware.run_blocking, call, proceed)
            return proceed()

        return run


class ItemsOfRun:
    """The iterator that a worker's middlewares made of a stream, with the generators beneath, which are closed
    with it."""

    def __init__(self, items: Any, made: Sequence[Any]) -> None:
        self._items = items
        self._made = made

    def __aiter__(self) -> AsyncIterator[Any]:
        return aiter(self._items)

    async def aclose(self) -> None:
        """Close them, the outermost first."""
        try:
            await _closed(self._items)
        finally:
            for generator in self._made:
                await _closed(generator)
