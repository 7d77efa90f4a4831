"""The transport of an event loop that has none: it has another event loop make the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from atasks.codecs.checked import over_limit
from atasks.errors import NotSupported, PayloadTooLarge
from atasks.options import TaskOptions
from atasks.policies.limit import Rule
from atasks.transport.contract import Transport
from atasks.transport.limits.contract import Limits, Token
from atasks.transport.records.contract import Record, Records, RunInfo
from atasks.transport.schedules import Look, Schedules
from atasks.wire import Call, Reply

__all__ = ["Bridge", "Far"]

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, T]]


class Far(Protocol):
    """A connection in an event loop of another thread."""

    @property
    def transport(self) -> Transport | None:
        """The transport there; None: it is not connected yet."""
        ...

    async def forward(self, make: Make[T]) -> T:
        """Run the coroutine of `make` in that event loop, once it is connected; returns and raises as it does.
        Cancelling this cancels it."""
        ...


class Bridge(Transport):
    """Moves calls of whatever event loop by a transport in another one, which may connect first.

    All of it can be used from several event loops at a time. It begins no streams: see `BridgedStream`.
    """

    def __init__(self, far: Far, namespace: str, queue: str) -> None:
        """Unlike other transports it does not become that of its namespace. `queue` is the default one."""
        self.namespace = namespace
        self.queue = queue
        self.callback = None
        self.forward = far.forward
        self.records = BridgedRecords(self)
        self.limits = BridgedLimits(self)
        self.schedules = BridgedSchedules(self)
        self._far = far

    @property
    def is_connected(self) -> bool:
        transport = self._far.transport
        return transport is not None and transport.is_connected

    async def _real(self) -> Transport:
        """The transport, in its own event loop."""
        transport = self._far.transport
        assert transport is not None, "`forward` has connected it"
        return transport

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        """Have a worker answer the call. Raises what the transport raises, and PayloadTooLarge."""

        viewer = options.viewer
        if viewer is not None:
            here = asyncio.get_running_loop()
            options = replace(options, viewer=lambda heard: here.call_soon_threadsafe(viewer, heard))

        async def request() -> Reply:
            transport = await self._real()
            _check_size(call, transport)
            return await transport.request(call, options)

        return await self.forward(request)

    async def publish(self, call: Call) -> None:
        """Have the handlers of an event run. Raises what the transport raises, and PayloadTooLarge."""

        async def publish() -> None:
            transport = await self._real()
            _check_size(call, transport)
            await transport.publish(call)

        await self.forward(publish)

    async def pause(self, seconds: float) -> bool:
        async def pause() -> bool:
            return await (await self._real()).pause(seconds)

        return await self.forward(pause)

    async def queue_states(self, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
        async def look() -> dict[str, tuple[int, int]]:
            return await (await self._real()).queue_states(queues)

        return await self.forward(look)


def _check_size(call: Call, transport: Transport) -> None:
    """Raise PayloadTooLarge for a call whose size nobody could check before it was connected."""
    size = len(call.payload) + sum(map(len, (call.context or {}).values()))
    if size > transport.max_payload:
        what = f"the arguments of {call.task} have"
        raise PayloadTooLarge(over_limit(what, size, transport.max_payload, "pass a reference to them instead"))


class BridgedRecords(Records):
    """The records of the transport behind a bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def _do(self, do: Callable[[Records], Coroutine[Any, Any, T]]) -> T:
        async def there() -> T:
            transport = await self._bridge._real()
            if transport.records is None:
                raise NotSupported(
                    f"{type(transport).__name__} keeps no results of submitted calls and runs: connect to "
                    "RabbitMQ or a hub, or await it here"
                )
            return await do(transport.records)

        return await self._bridge.forward(there)

    async def begin(self, call: Call, options: TaskOptions, *, delay: float = 0.0, named: str = "") -> str:
        async def begin(records: Records) -> str:
            _check_size(call, await self._bridge._real())
            return await records.begin(call, options, delay=delay, named=named)

        return await self._do(begin)

    async def again(self, record: Record, call: Call, options: TaskOptions) -> bool:
        return await self._do(lambda records: records.again(record, call, options))

    async def history(
        self, *, since: float | None = None, failed: bool = False, task: str = "*", limit: int = 100
    ) -> Sequence[RunInfo]:
        return await self._do(lambda records: records.history(since=since, failed=failed, task=task, limit=limit))

    async def drop(self, call_id: str) -> None:
        await self._do(lambda records: records.drop(call_id))

    async def add(self, call_id: str, reply: Reply, *, quiet: bool = False) -> None:
        await self._do(lambda records: records.add(call_id, reply, quiet=quiet))

    async def cancel(self, record: Record, ending: Reply) -> None:
        await self._do(lambda records: records.cancel(record, ending))

    async def read(self, call_id: str) -> Record:
        return await self._do(lambda records: records.read(call_id))

    async def touch(self, call_id: str) -> None:
        await self._do(lambda records: records.touch(call_id))

    async def wait(self, call_id: str, wanted: Callable[[Record], bool], *, steps: bool) -> Record:
        return await self._do(lambda records: records.wait(call_id, wanted, steps=steps))

    def watch(self, call_id: str, *, steps: bool) -> AbstractAsyncContextManager[asyncio.Event]:
        """Raises NotSupported: an event belongs to its event loop. Only workers watch, in theirs."""
        raise NotSupported("records are watched in the event loop of their transport")


class BridgedLimits(Limits):
    """The limits of the transport behind a bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def take(self, name: str, key: str | None, rule: Rule) -> Token:
        async def take() -> Token:
            transport = await self._bridge._real()
            if transport.limits is None:
                raise NotSupported(f"{type(transport).__name__} has no limits: use another transport")
            return _BridgedToken(await transport.limits.take(name, key, rule))

        return await self._bridge.forward(take)


class _BridgedToken:
    """A token of another event loop."""

    def __init__(self, token: Token) -> None:
        self._token = token
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        self._loop.call_soon_threadsafe(self._token.begin)

    def release(self) -> None:
        self._token.release_soon()

    def release_soon(self) -> None:
        self._token.release_soon()


class BridgedSchedules(Schedules):
    """The schedules of the transport behind a bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def _do(self, do: Callable[[Schedules], Coroutine[Any, Any, T]]) -> T:
        async def there() -> T:
            transport = await self._bridge._real()
            if transport.schedules is None:
                raise NotSupported(f"{type(transport).__name__} keeps no schedules: use another transport")
            return await do(transport.schedules)

        return await self._bridge.forward(there)

    async def read(self) -> bytes:
        return await self._do(lambda schedules: schedules.read())

    async def swap(self, old: bytes, new: bytes) -> bool:
        return await self._do(lambda schedules: schedules.swap(old, new))

    async def stand(self, look: Look) -> bool:
        """Do nothing: a worker stands by its own transport."""
        return False

    async def withdraw(self, look: Look) -> None:
        """Do nothing: nobody stands by a bridge."""

    def leads(self, look: Look) -> bool:
        return False
