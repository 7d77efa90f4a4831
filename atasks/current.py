"""The call that is being served here, and the context variables that travel with calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from atasks.checks import validate_name
from atasks.progress import Progress
from atasks.wire import MAX_NOTE

if TYPE_CHECKING:
    import asyncio

    from atasks.worker.held_call import HeldCall

__all__ = ["CurrentCall", "carry", "current_call", "new_call_id"]

T = TypeVar("T")

IDS_AT_ONCE: Final = 128


def _finite(number: float) -> float:
    """The number as messages carry it. Raises ValueError."""
    try:
        if math.isfinite(number):
            return number if abs(number) <= 2**53 else float(number)
    except OverflowError:
        pass
    raise ValueError("report() takes finite numbers, of the size of a float at most")


def sendable(note: str) -> str:
    """The beginning of a note; lone surrogates, which no message can carry, become their escapes."""
    note = note[:MAX_NOTE]
    return note if note.isascii() else note.encode("utf-8", "backslashreplace").decode()[:MAX_NOTE]


class CurrentCall:
    """A view of the call that is being served. Outside a call every attribute is None."""

    __slots__ = (
        "attempt",
        "deadline",
        "id",
        "key",
        "name",
        "parent_id",
        "queue",
        "root_id",
        "state",
        "try_",
    )

    def __init__(
        self,
        id: str | None = None,
        attempt: int | None = None,
        deadline: float | None = None,
        parent_id: str | None = None,
        root_id: str | None = None,
        state: Any = None,
        key: str | None = None,
        try_: int | None = None,
        name: str | None = None,
        queue: str | None = None,
    ) -> None:
        self.id = id
        """Unique per call, and the same for every attempt. Each try of a `Retry` is a call of its own."""
        self.key = key
        """The idempotency key: the same for every attempt and every try; without tries it is the id."""
        self.try_ = try_
        """1, and one more for each try before this one that a `Retry` found worth another."""
        self.name = name
        """The name of the atask on the wire."""
        self.queue = queue
        """The work queue that the call came from."""
        self.attempt = attempt
        """1, and one more for each worker that died while it held the call."""
        self.deadline = deadline
        """When the call times out, by the event loop's clock (for `asyncio.timeout_at`); None: never."""
        self.parent_id = parent_id
        """The call that awaits this one, or None."""
        self.root_id = root_id
        """The call at the top of the chain; this call's own id if nothing awaits it from a worker."""
        self.state = state
        """The object that the `lifespan` given to `serve` yielded."""

    def report(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the call is: `done` of `total`, in any unit, with a short note.

        The last report is kept while the call runs: `atasks ps` and `atasks tree` show it. It is sent only to who
        watches, a caller by `ATask.watch` or `Handle.progress`, ten times a second at most, the latest one each
        time and the last one before the call ends. So it may be said often. Outside of a call nothing happens.

        Args:
            done: So much is done.
            total: So much there is. None: that is not known.
            note: Some words, of which 200 characters are kept.

        Raises:
            TypeError: `done` or `total` is no number, or `note` no text.
            ValueError: A number is not finite.
        """
        numbers: tuple[object, ...] = (done,) if total is None else (done, total)
        given: object = note
        if not all(isinstance(number, (int, float)) for number in numbers) or not isinstance(given, str):
            raise TypeError("report() takes how much is done, of how much, and a note: two numbers and a string")
        progress = Progress(_finite(done), None if total is None else _finite(total), sendable(note))
        run = serving.get()
        if run is not None and run.current is self:
            run.tell(progress)
        elif self is lone_call and self.id is not None and tell_worker is not None:
            tell_worker(self.id, progress)

    def __repr__(self) -> str:
        return f"<CurrentCall {self.id} attempt {self.attempt}>" if self.id else "<CurrentCall: none>"


serving: ContextVar[HeldCall | None] = ContextVar("atasks.serving", default=None)
"""The run that this context belongs to. Set by the worker for the task that runs the call."""


class CallingThread(Protocol):
    """A call in a thread of its worker."""

    loop: asyncio.AbstractEventLoop

    @property
    def has_ended(self) -> bool:
        """The function of the call has returned or raised."""
        ...

    async def wait_for(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await what `make` returns on behalf of the thread, which leaves its place to another one meanwhile."""
        ...


def serving_here() -> HeldCall | None:
    """The run that the code which asks is a part of; None outside a call, in a task that outlived its call, and in
    an event loop of a thread's own."""
    run = serving.get()
    if run is not None and not run.is_here():
        return None
    return run


calling_thread: ContextVar[CallingThread | None] = ContextVar("atasks.calling_thread", default=None)
"""The call that this thread works for."""

lone_call: CurrentCall | None = None
"""In a process of `executor="process"`: the one call that it serves now."""

tell_worker: Callable[[str, Progress], None] | None = None
"""In such a process: hands on what the call of that id reports. None: it is no such process, or a fork of one."""

_no_call = CurrentCall()


def current_call() -> CurrentCall:
    """The call that is being served by the code that asks; all attributes are None outside a call.

    Example:
        ```python
        from atasks import atask, current_call

        @atask
        async def who() -> int | None:
            return current_call().attempt

        print(await who(), current_call().id)  # 1 None
        ```
    """
    run = serving.get()
    if run is None:
        return lone_call or _no_call
    return run.current


carried: dict[str, ContextVar[Any]] = {}
"""Context variables that travel with calls, by name."""


def carry(variable: ContextVar[T]) -> ContextVar[T]:
    """Make a context variable travel with calls, and return it.

    A call takes the value that the variable has when it is made, if it has one, encoded by the namespace's codec;
    the atask sees it, and so do the calls that it makes. Nothing travels back. Both sides must carry a variable of
    that name; one that is not carried by the worker is ignored there.

    Args:
        variable: The context variable. Its name is the one by which both sides know it.

    Raises:
        ValueError: Another variable of the same name is carried, or no message can carry the name.

    Example:
        ```python
        from contextvars import ContextVar

        import atasks
        from atasks import atask

        user = atasks.carry(ContextVar[str]("user of the reference"))

        @atask
        async def who() -> str:
            return user.get()

        user.set("ann")
        print(await who())  # ann
        ```
    """
    validate_name(variable.name, "the name of a context variable")
    if carried.setdefault(variable.name, variable) is not variable:
        raise ValueError(f"another context variable named {variable.name!r} is carried already")
    return variable


_SLICES: Final = [slice(start, start + 32) for start in range(0, 32 * IDS_AT_ONCE, 32)]
_ids: list[str] = []
"""Ids that no call has yet."""


def new_call_id() -> str:
    """A call id: 128 random bits, which tell nothing of any other id."""
    while True:
        try:
            return _ids.pop()
        except IndexError:  # one system call for many
            digits = os.urandom(16 * IDS_AT_ONCE).hex()
            _ids.extend(map(digits.__getitem__, _SLICES))


# A forked child must not use the ids of its parent.
os.register_at_fork(after_in_child=_ids.clear)
