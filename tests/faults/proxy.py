"""A TCP proxy in front of the broker that fails in the ways that networks fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.brokers.ports import free_ports

__all__ = ["BIND", "Connection", "Direction", "Proxy", "Role"]

Role = Literal["publish", "consume", "unknown"]
Direction = Literal["to_broker", "to_client"]
DIRECTIONS: tuple[Direction, ...] = ("to_broker", "to_client")
T = TypeVar("T")
FRAME_HEAD = struct.Struct(">BHI")
CONSUME = struct.pack(">HHH", 60, 20, 0)
"""The beginning of `Basic.Consume`, up to the name of the queue."""
BIND = struct.pack(">HHH", 50, 20, 0)
"""That of `Queue.Bind`."""

CHUNK = 2**16
GREETING = 4096
"""Bytes from the client in which the name of its connection is looked for."""


class Connection:
    """A proxied connection. Only the proxy's thread touches it; the counters may be read from any."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter, number: int) -> None:
        self.number = number
        self.role: Role = "unknown"
        """The purpose of the connection, which the client says in the connection's name."""
        self.forwarded: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        """Bytes passed on."""
        self.swallowed: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        """Bytes taken and thrown away since `mute`."""
        self._muted: set[Direction] = set()
        self._held: set[Direction] = set()
        self.unasked: Sequence[bytes] = ()
        """See `Proxy.leave_unasked`."""
        self._flow = asyncio.Event()
        self._flow.set()
        self._writers = {"to_broker": broker, "to_client": client}
        self._greeting = b""

    async def pump(self, direction: Direction, reader: asyncio.StreamReader, delay: Callable[[], float]) -> None:
        writer = self._writers[direction]
        while data := await reader.read(CHUNK):
            if direction == "to_broker" and len(self._greeting) < GREETING:
                self._look(data)
            if pause := delay():
                await asyncio.sleep(pause)
            while direction in self._held:
                await self._flow.wait()
            if direction == "to_broker" and self.unasked:
                data = self._without_questions(data)
            if direction in self._muted:
                self.swallowed[direction] += len(data)
                continue
            writer.write(data)
            await writer.drain()
            self.forwarded[direction] += len(data)

    def _without_questions(self, data: bytes) -> bytes:
        """Cut these questions out: a client writes the frame of one at once."""
        for question in self.unasked:
            while (found := data.find(question)) >= 0:
                start = found - FRAME_HEAD.size
                _, _, size = FRAME_HEAD.unpack_from(data, start)
                self.swallowed["to_broker"] += FRAME_HEAD.size + size + 1
                data = data[:start] + data[found + size + 1 :]
        return data

    def _look(self, data: bytes) -> None:
        self._greeting += data
        for role in ("publish", "consume"):
            if b" %s" % role.encode() in self._greeting:
                self.role = role  # type: ignore[assignment]

    def hold(self, directions: Iterable[Direction]) -> None:
        self._held.update(directions)
        self._flow.clear()

    def mute(self, directions: Iterable[Direction]) -> None:
        self._muted.update(directions)

    def resume(self) -> None:
        self._held.clear()
        self._flow.set()

    def reset(self) -> None:
        """End both sides as a reset does: without a word, and without what was not sent yet."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


class Proxy:
    """Listens on a port of the loopback interface, and forwards to the broker of a URL, in a thread of its own.

    Every method may be called from any thread, and has taken effect when it returns. `role` restricts one to
    the connections on which clients publish or consume; without it they act on all that exist.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        (self.port,) = free_ports(1)
        self._delay = 0.0
        self._held = False
        self._unasked: list[bytes] = []
        self._connections: dict[int, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0
        """Connections accepted so far."""
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._call(self._listen())

    def url(self, **query: object) -> str:
        """The broker's URL, through this proxy."""
        user = self._target.netloc.rpartition("@")[0]
        text = "&".join(f"{key}={value}" for key, value in query.items())
        return urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{self.port}", query=text))

    @property
    def connections(self) -> list[Connection]:
        """Those that are open now."""
        return list(self._connections.values())

    def forwarded(self, direction: Direction, role: Role | None = None) -> int:
        """Bytes passed on over the connections that are open now."""
        return sum(item.forwarded[direction] for item in self._chosen(role))

    def swallowed(self, direction: Direction, role: Role | None = None) -> int:
        """Bytes thrown away over the connections that are open now."""
        return sum(item.swallowed[direction] for item in self._chosen(role))

    # -- faults

    def drop(self, role: Role | None = None) -> int:
        """Reset connections; returns how many."""

        async def drop() -> int:
            chosen = self._chosen(role)
            for connection in chosen:
                connection.reset()
            return len(chosen)

        return self._call(drop())

    def hold(self, role: Role | None = None, *directions: Direction) -> None:
        """Forward nothing more, and close nothing (half-open); `resume` forwards what was held."""

        async def hold() -> None:
            for connection in self._chosen(role):
                connection.hold(directions or DIRECTIONS)

        self._call(hold())

    def blackhole(self) -> None:
        """Hold every connection that exists or comes, until `resume`."""
        self._held = True
        self.hold()

    def mute(self, direction: Direction, role: Role | None = None) -> None:
        """Throw away what goes in this direction. The connections are of no use any more: drop them afterwards."""

        async def mute() -> None:
            for connection in self._chosen(role):
                connection.mute([direction])

        self._call(mute())

    def leave_unasked(self, *queues: str, question: bytes = CONSUME) -> None:
        """Throw away each question to consume one of these queues, or another `question` of that kind, on all
        connections: no answer comes. Without queues every later question is passed on."""
        self._unasked[:] = [question + bytes([len(queue)]) + queue.encode() for queue in queues]

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for so long."""
        self._delay = seconds

    def refuse(self) -> None:
        """Refuse new connections until `resume`."""
        self._call(self._close_server())

    def resume(self) -> None:
        """Forward and accept again; a connection that was muted stays so."""

        async def resume() -> None:
            self._delay = 0.0
            self._held = False
            for connection in self._chosen(None):
                connection.resume()
            if self._server is None:
                await self._listen()

        self._call(resume())

    def close(self) -> None:
        """End every connection, and the thread."""

        async def close() -> None:
            await self._close_server()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

        self._call(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- the proxy's thread

    def _call(self, coroutine: asyncio._CoroutineLike[T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)  # type: ignore[arg-type]

    def _chosen(self, role: Role | None) -> list[Connection]:
        return [item for item in list(self._connections.values()) if role is None or item.role == role]

    async def _listen(self) -> None:
        deadline = time.monotonic() + 5
        while True:
            try:
                self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            except OSError:  # the kernel may need a moment to let go of the port
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.01)
            else:
                return

    async def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except asyncio.CancelledError:
            pass  # close()
        finally:
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        try:
            host, port = self._target.hostname, self._target.port or 5672
            broker_reader, broker_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()  # the broker is down: so is this
            return
        connection = self._connections[number] = Connection(writer, broker_writer, number)
        connection.unasked = self._unasked
        if self._held:
            connection.hold(DIRECTIONS)
        pumps = [
            asyncio.create_task(connection.pump("to_broker", reader, lambda: self._delay)),
            asyncio.create_task(connection.pump("to_client", broker_reader, lambda: self._delay)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            # What one side sent before it closed still reaches the other.
            for side in (writer, broker_writer):
                with contextlib.suppress(OSError):
                    side.close()
            await asyncio.wait(pumps, timeout=1)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            connection.reset()
            del self._connections[number]
