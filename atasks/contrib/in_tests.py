"""Connections of a test: its calls run in its own event loop, or on worker processes of the test run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from atasks import wire
from atasks.blocks import Block, settle
from atasks.caller.background import run_in
from atasks.contrib.faults import Fault
from atasks.contrib.faulty_loopback import FaultyLoopback
from atasks.contrib.recorded_calls import CallRecorder, RecordedCall, Submissions, known_namespaces, used
from atasks.errors import WorkersFailed
from atasks.functions import run_at_once
from atasks.lazy import LazyConnection
from atasks.namespaces import namespace_item, namespaces
from atasks.router import get_router
from atasks.tracking.fleet import Fleet
from atasks.transport.call_transport import CallTransport
from atasks.transport.contract import Transport
from atasks.transport.records.contract import record_of
from atasks.urls import shown
from atasks.wire import Call
from atasks.worker.worker import Worker

__all__ = ["CallRecorder", "InLoop", "Processes", "RecordedCall", "TestConnection", "connected", "used"]

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, T]]

PATIENCE: Final = 1.0
"""Seconds that calls, awaits and tasks get at the end of a test to end by themselves."""
PROCESSES: Final = 2
"""Worker processes of each namespace."""
STARTING_SECONDS: Final = 60.0
"""Seconds in which worker processes have to serve."""


@contextmanager
def connected(connections: Sequence[LazyConnection]) -> Iterator[None]:
    """Inside this block calls that are in no `connect` or `serve` block use these connections."""
    former = {each.namespace: getattr(namespace_item(each.namespace), "lazy", None) for each in connections}
    for each in connections:
        get_router(each.namespace)
        namespaces.register(each.namespace, lazy=each)
    try:
        yield
    finally:
        for name, lazy in former.items():
            namespaces.register(name, lazy=lazy)


class TestConnection(LazyConnection):
    """The connection of a test in one namespace: a loopback transport with a worker of its own in each event loop
    in which a call is made, from the first call on."""

    __test__ = False  # pytest would take it for tests

    def __init__(self, namespace: str, concurrency: int, faults: Sequence[Fault], leaks: bool) -> None:
        super().__init__("loopback:", namespace, {})
        self.concurrency = concurrency
        self.faults: list[list[Any]] = [[fault, fault.times] for fault in faults]
        """Each with how many times it is to happen still."""
        self.leaks = leaks
        self._places: dict[asyncio.AbstractEventLoop, InLoop] = {}

    @property
    def bridge(self) -> Transport:
        """The transport of the running event loop."""
        return self.place().transport

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the calls that are made here."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            running = (loop for loop in self._places if loop.is_running())
            return next(running, None) or super().loop

    def place(self) -> InLoop:
        """The transport and worker in the running event loop, which begin now if there are none."""
        loop = asyncio.get_running_loop()
        if loop not in self._places:
            self._places[loop] = InLoop(self)
        return self._places[loop]

    async def forward(self, make: Make[T]) -> T:
        """Run it in this event loop."""
        return await self.within(make)

    async def within(self, make: Make[T]) -> T:
        """Run it, connected, in the running event loop."""
        self.place()
        return await make()

    def run(self, make: Make[T]) -> T:
        """Run it for a thread, which waits: in the event loop of the test, or in one in the background."""
        return run_in(self.loop, lambda: self.within(make))

    def take(self, call: Call) -> Fault | None:
        """The fault that is to happen to this delivery of a call."""
        for entry in self.faults:
            fault, left = entry
            if left and fault.concerns(call.task):
                entry[1] -= 1
                found: Fault = fault
                return found
        return None

    def end(self) -> list[str]:
        """Disconnect in every event loop, and tell what the test left behind there."""
        left = []
        for loop, place in list(self._places.items()):
            if loop.is_closed():
                place.forget()
            elif loop.is_running():
                left += asyncio.run_coroutine_threadsafe(place.leave(), loop).result()
            else:
                left += loop.run_until_complete(place.leave())
        self._places.clear()
        if self._place is not None:
            place_, self._place = self._place, None
            place_.background.leave()
        return left if self.leaks else []


class InLoop:
    """The transport of a test and its worker in one event loop."""

    def __init__(self, connection: TestConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self._before = asyncio.all_tasks(self._loop)
        namespace = connection.namespace
        router, registered = get_router(namespace), getattr(namespace_item(namespace), "transport", None)
        self.transport = FaultyLoopback(namespace, connection.take)
        namespaces.register(namespace, transport=registered)
        run_at_once(self.transport.connect())
        self._blocks = router._connected.setdefault(self._loop, [])
        self._connected = router._connected
        self._block = Block(self.transport)
        self._blocks.append(self._block)
        self.worker = Worker(router, self.transport, concurrency=connection.concurrency)
        run_at_once(self.worker.start())

    async def leave(self) -> list[str]:
        """Disconnect, and tell what the test left behind."""
        await settle()
        until = self._loop.time() + PATIENCE
        while (self.transport.pendings() or self.worker.held) and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # neither of them tells anybody
        left = [f"{wire.describe(pending.call)} is awaited still" for pending in self.transport.pendings()]
        awaited = {pending.call.id for pending in self.transport.pendings()}
        left += [f"{wire.describe(run.call)} runs still" for run in self.worker.runs if run.call.id not in awaited]
        self.forget()
        await self.worker.drain(grace=0)
        await self.transport.disconnect()
        tasks = asyncio.all_tasks() - self._before - {asyncio.current_task()}
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=max(until - self._loop.time(), 0.1))
            left += [f"the task {task.get_name()!r} ({_function(task)}) has not ended" for task in pending]
        return left

    def forget(self) -> None:
        """No call uses it any more."""
        self._block.leave()
        if self._block in self._blocks:
            self._blocks.remove(self._block)
        if not self._blocks:
            self._connected.pop(self._loop, None)


def _function(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


class Processes:
    """Worker processes of a test run, in the namespaces that are known when they are wanted first: those of
    `local:`, or of a broker's URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.size = PROCESSES if url.startswith(("local", "amqp")) else None
        """The number of them; None: a server of its own has started them."""
        self._prefix = f"test-{uuid.uuid4().hex}"
        self._connections: dict[str, LazyConnection] = {}
        self._servers: list[subprocess.Popen[bytes]] = []
        self._hidden: list[Callable[[], object]] = []
        """Each one shows the blocks of a connection again."""

    @contextmanager
    def in_use(self) -> Iterator[list[str]]:
        """Inside this block calls use these processes; outside of it no code finds their connections.

        The list that it gives says, when the block has ended, which calls that began in it are awaited still, or
        were submitted and run still.
        """
        connections = self._known()
        self._show()
        before = {
            pending.call.id for each in connections if each.transport for pending in each.transport.pendings()
        }
        left: list[str] = []
        try:
            with connected(connections), used(Submissions()) as submissions:
                yield left
            for connection in connections:
                if connection.transport is not None:
                    find = partial(_left, connection.transport, before, submissions.ids, self.size)
                    left += run_in(connection.loop, find)
        finally:
            for connection in connections:
                blocks = get_router(connection.namespace)._connected
                if connection.transport is not None and connection.loop in blocks:
                    hidden = blocks.pop(connection.loop)
                    self._hidden.append(partial(blocks.__setitem__, connection.loop, hidden))

    def _show(self) -> None:
        for show in self._hidden:
            show()
        self._hidden.clear()

    def _known(self) -> list[LazyConnection]:
        """The connections of all namespaces that have atasks, which are made once."""
        for namespace in known_namespaces():
            registry = getattr(namespace_item(namespace), "registry", None)
            if namespace not in self._connections and registry is not None and registry.names():
                self._connections[namespace] = self._connection(namespace)
        return list(self._connections.values())

    def _connection(self, namespace: str) -> LazyConnection:
        if self.url.startswith("local"):
            return LazyConnection(self.url, namespace, {"workers": PROCESSES})
        if not self.url.startswith("amqp"):
            return LazyConnection(self.url, namespace, {})  # the workers of a server
        url = f"{self.url}{'&' if '?' in self.url else '?'}prefix={self._prefix}"
        connection = LazyConnection(url, namespace, {})
        self._serve(url, connection)
        return connection

    def _serve(self, url: str, connection: LazyConnection) -> None:
        """Start two processes that serve the namespace's atasks over the broker, and return when they do."""
        tasks = _tasks(connection.namespace)
        command = [sys.executable, "-m", "atasks", "run", *sorted({task.__module__ for task in tasks})]
        command += ["--mode", "server", "--url", url, "--namespace", connection.namespace]
        command += ["--workers", str(PROCESSES), "--grace", "5"]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
        self._servers.append(server)
        queues = sorted({task.task_options.queue or "default" for task in tasks})

        async def served() -> bool:
            assert connection.transport is not None
            states = await connection.transport.queue_states(queues)
            return all(workers for _, workers in states.values())

        until = time.monotonic() + STARTING_SECONDS
        while not connection.run(served):
            if server.poll() is not None or time.monotonic() > until:
                raise WorkersFailed(f"the worker processes of {shown(self.url)!r} do not serve: see stderr")
            time.sleep(0.05)

    def close(self) -> None:
        """End the connections and the processes."""
        self._show()
        for connection in self._connections.values():
            connection.close()
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


async def _left(transport: Transport, before: set[str], submitted: set[str], size: int | None) -> list[str]:
    """The calls that are awaited over it still, but those before, and the submitted ones that its workers run, a
    second from now at the latest."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE
    fleet = Fleet(transport, PATIENCE, size) if submitted and isinstance(transport, CallTransport) else None
    while True:
        await settle()
        calls = [each.call for each in transport.pendings() if not each.kept and each.call.id not in before]
        left = [f"{wire.describe(call)} is awaited still" for call in calls]
        held = (await fleet.calls()).calls if fleet else []
        own = [call for call in held if record_of(call.id) in submitted]
        left += [f"task {call.task!r}, call {call.id} runs still" for call in own]
        if not left or loop.time() >= until:
            return left
        await asyncio.sleep(0.001)  # nobody is told


def _tasks(namespace: str) -> list[Any]:
    return [item.task for item in namespace_item(namespace).registry.items.values()]
