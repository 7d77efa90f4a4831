"""The store of the schedules of a namespace, and who keeps their times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from atasks.codecs.base import Codec
    from atasks.options import TaskOptions
    from atasks.registry import Manager
    from atasks.transport.contract import Transport
    from atasks.wire import Call

__all__ = ["CallMaker", "MemorySchedules", "Schedules"]

T = TypeVar("T")

Look = Callable[[], None]
"""Called without waiting: this worker keeps the times from now on, or the table has changed."""


class CallMaker(Protocol):
    """The router of a namespace, as far as schedules need it."""

    registry: Manager

    @property
    def codec(self) -> Codec:
        """The codec of the namespace."""
        ...

    async def submit_encoded(
        self,
        name: str,
        payload: bytes,
        codec: str,
        options: TaskOptions,
        transport: Transport,
        begin: Callable[[Call], Coroutine[Any, Any, T]],
        call_id: str | None = None,
        *,
        tries: bool = False,
    ) -> T:
        """Submit a call whose arguments were encoded before, those of `run_tries` if it has `tries`, and return
        what `await begin(call)` does."""
        ...

    async def encode_arguments(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Return the arguments of a call in the codec's bytes."""
        ...


class Schedules(ABC):
    """One table, which every process of the namespace may read and change, and one worker that keeps its times.

    The table is bytes to this. It outlives the processes that use it, as far as the transport has anything that
    does.
    """

    @abstractmethod
    async def read(self) -> bytes:
        """The table; empty if there is none."""

    @abstractmethod
    async def swap(self, old: bytes, new: bytes) -> bool:
        """Put `new` in the place of `old`, and return when that is safe. False, and nothing happens, if the table
        is another one by now. Who keeps the times is told."""

    @abstractmethod
    async def stand(self, look: Look) -> bool:
        """Let this worker keep the times when nobody else does, until `withdraw`: then `look` is called, and after
        every change. False: there is no table yet, and it stands as soon as there is one."""

    @abstractmethod
    async def withdraw(self, look: Look) -> None:
        """This worker keeps no times any more: the next one does."""

    @abstractmethod
    def leads(self, look: Look) -> bool:
        """Tell whether this worker keeps the times."""


class MemorySchedules(Schedules):
    """The table of one process."""

    def __init__(self) -> None:
        self._table = b""
        self._standing: list[Look] = []

    async def read(self) -> bytes:
        return self._table

    async def swap(self, old: bytes, new: bytes) -> bool:
        if old != self._table:
            return False
        self._table = new
        self._tell()
        return True

    async def stand(self, look: Look) -> bool:
        self._standing.append(look)
        if len(self._standing) == 1:
            look()
        return bool(self._table)

    async def withdraw(self, look: Look) -> None:
        if look in self._standing:
            self._standing.remove(look)
            self._tell()

    def leads(self, look: Look) -> bool:
        return bool(self._standing) and self._standing[0] is look

    def _tell(self) -> None:
        if self._standing:
            self._standing[0]()
