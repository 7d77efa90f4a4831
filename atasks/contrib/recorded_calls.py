"""Middlewares of a test run, which note the calls that it makes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from atasks.caller.stream import RemoteStream
from atasks.middleware import Invocation, Middleware, use
from atasks.namespaces import namespace_item, namespaces

__all__ = ["CallRecorder", "RecordedCall", "Submissions", "known_namespaces", "used"]

M = TypeVar("M", bound=Middleware)


def known_namespaces() -> list[str]:
    """The namespaces of this process, of which "default" is always one."""
    return list(dict.fromkeys(["default", *namespaces.names()]))


@dataclass
class RecordedCall:
    """A call that a test made, or that a call of it made in this process."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    submitted: bool
    """True if nobody awaits it: its result is not recorded."""
    result: Any = None
    """The result; of a stream the items that were read, in a list; None: there is none so far."""
    error: BaseException | None = None
    """The exception in which it ended."""


class CallRecorder(Middleware, Sequence[RecordedCall]):
    """The calls that were made, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: list[RecordedCall] = []

    @property
    def names(self) -> list[str]:
        """The last parts of the names of their atasks."""
        return [call.name.rpartition(".")[2].rpartition(":")[2] for call in self._calls]

    def of(self, task: Any) -> list[RecordedCall]:
        """The calls of one atask, by the atask, its name or the last part of that."""
        name = getattr(task, "name", task)
        return [call for call in self._calls if call.name == name or call.name.endswith((f".{name}", f":{name}"))]

    @overload
    def __getitem__(self, index: int) -> RecordedCall: ...
    @overload
    def __getitem__(self, index: slice) -> list[RecordedCall]: ...
    def __getitem__(self, index: int | slice) -> RecordedCall | list[RecordedCall]:
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<calls of {', '.join(self.names) or 'nothing'}>"

    async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        made = RecordedCall(call.name, call.args, call.kwargs, call.submitted)
        self._calls.append(made)
        try:
            result = await proceed()
        except BaseException as error:
            made.error = error
            raise
        if isinstance(result, RemoteStream):
            made.result = []
            return _read(result, made)
        if not call.submitted:
            made.result = result
        return result


async def _read(stream: RemoteStream[Any], made: RecordedCall) -> AsyncIterator[Any]:
    try:
        async for item in stream:
            made.result.append(item)
            yield item
    except GeneratorExit:
        raise
    except BaseException as error:
        made.error = error
        raise


class Submissions(Middleware):
    """The ids of the calls that were submitted."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        if call.submitted:
            self.ids.add(call.id)
        return await proceed()


@contextmanager
def used(middleware: M) -> Iterator[M]:
    """Inside this block the middleware is around the calls that this process makes in the namespaces that it
    knows."""
    former = {name: getattr(namespace_item(name), "around_calls", None) for name in known_namespaces()}
    for name in former:
        use(middleware, name)
    try:
        yield middleware
    finally:
        for name, around in former.items():
            namespaces.register(name, around_calls=around)
