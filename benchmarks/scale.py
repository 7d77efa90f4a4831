"""`python -m benchmarks.scale [STUDY...]`: how atasks behaves at its limits, over RabbitMQ.

Each study answers one question with a table, and compares with a yardstick of the same run where there is one.
They take some minutes together. RabbitMQ is found as `python -m benchmarks` finds it. Nothing else should be
running.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

import atasks
from atasks.transport.backends.amqp import AMQPTransport
from benchmarks import scale_functions as functions
from benchmarks.__main__ import servers
from benchmarks.atasks_amqp import delete
from benchmarks.catalogue import AMQP
from benchmarks.collector import Collector
from benchmarks.harness import VARIABLES
from benchmarks.load import BenchmarkFailed
from benchmarks.processes import Child

ECHO_SERVER = Path(__file__).with_name("socket_echo.py")


@asynccontextmanager
async def fleet(count: int, concurrency: int, **variables: str) -> AsyncIterator[list[psutil.Process]]:
    """So many workers in processes of their own, and a connection to them. Yields the processes."""
    prefix = f"scale-{uuid.uuid4().hex[:8]}"
    environ = {
        VARIABLES[AMQP]: os.environ[VARIABLES[AMQP]],
        functions.CONCURRENCY: str(concurrency),
        **variables,
    }
    async with AsyncExitStack() as stack:
        stack.push_async_callback(delete, prefix)  # once everything else has ended
        children = [
            await stack.enter_async_context(
                Child.start(Path(sys.executable), "benchmarks.scale_functions", "worker", prefix, environ=environ)
            )
            for _ in range(count)
        ]
        await stack.enter_async_context(atasks.connect(os.environ[VARIABLES[AMQP]], prefix=prefix))
        for _ in range(200 * count):  # every worker has seen the atask, and its pace is known
            await functions.echo(b"")
        yield [psutil.Process(child.pid) for child in children]


async def in_flight(calls: int, width: int, call: Callable[[], Awaitable[Any]]) -> float:
    """Make so many calls, so many of them at a time; the seconds that they took."""
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(width, calls)):
            group.create_task(caller())
    return time.perf_counter() - begun


def cpu(process: psutil.Process) -> float:
    """CPU seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def rss(process: psutil.Process) -> float:
    """Resident memory in MiB."""
    return float(process.memory_info().rss / 2**20)


async def fairness() -> None:
    """Does batching keep work from workers that are free? Makespans with it and without, medians of five."""
    shuffled = random.Random(1).sample([1.0] * 64 + [0.001] * 2000, 2064)
    loads: dict[str, Callable[[Any], list[Coroutine[Any, Any, None]]]] = {
        "2000 calls of 50 ms": lambda batch: [functions.nap.options(batch=batch)(0.05) for _ in range(2000)],
        "64 calls of 1 s among 2000 of 1 ms, one atask": lambda batch: [
            functions.nap.options(batch=batch)(seconds) for seconds in shuffled
        ],
        "the same, two atasks": lambda batch: [
            (functions.long_nap if seconds == 1 else functions.quick_nap).options(batch=batch)()
            for seconds in shuffled
        ],
    }
    print("4 workers of concurrency=4            batch='auto'   batch=False   ratio")
    async with fleet(4, 4):
        for name, calls in loads.items():
            makespans: dict[Any, list[float]] = {"auto": [], False: []}
            for _ in range(5):
                for batch, found in makespans.items():
                    begun = time.perf_counter()
                    await asyncio.gather(*calls(batch))
                    found.append(time.perf_counter() - begun)
            auto, single = (statistics.median(found) for found in makespans.values())
            print(f"{name:<46} {auto:>6.2f} s {single:>8.2f} s {auto / single:>7.2f}", flush=True)


async def width() -> None:
    """Does the cost of a call grow with the calls in flight? Medians of three, beside bare asyncio tasks."""
    payload = b"x" * 100
    async with fleet(1, 100) as [worker]:
        for title, call, oldest in (
            ("calls", lambda: functions.echo(payload), None),
            (f"calls, gc.set_threshold(700, 10, {RARELY})", lambda: functions.echo(payload), RARELY),
            ("asyncio tasks that await a future each, and no calls", _Turnstile().wait, None),
        ):
            print(f"{title}\nin flight     per s   CPU us each: client   of that gc   worker   of 500's")
            base = 0.0
            for wide in (500, 5_000, 20_000, 100_000):
                rows = [await _at_width(wide, call, worker, oldest) for _ in range(3)]
                rate, client, collector, other = (statistics.median(column) for column in zip(*rows, strict=True))
                base = base or client + other
                print(
                    f"{wide:>9} {rate:>9.0f} {client:>21.1f} {collector:>12.1f} {other:>8.1f}"
                    f" {(client + other) / base:>10.2f}",
                    flush=True,
                )


RARELY = 200


async def _at_width(
    wide: int, call: Callable[[], Awaitable[Any]], worker: psutil.Process, oldest: int | None
) -> tuple[float, float, float, float]:
    """Calls a second, and CPU microseconds per call: of this process, of its collector, of the worker."""
    calls = max(wide, 50_000)
    client = psutil.Process()
    with Collector(oldest) as collector:
        before = cpu(client), cpu(worker)
        seconds = await in_flight(calls, wide, call)
        after = cpu(client), cpu(worker)
    spent = (after[0] - before[0], collector.seconds, after[1] - before[1])
    return (calls / seconds, *(1e6 * each / calls for each in spent))


class _Turnstile:
    """Lets all pass that have come in one turn of the event loop, each by a future of its own."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._open)
        self._waiting.append(loop.create_future())
        await self._waiting[-1]

    def _open(self) -> None:
        passing, self._waiting = self._waiting, []
        for future in passing:
            future.set_result(None)


async def watching() -> None:
    """Does a viewer slow the calls that it looks at? Medians of nine, in turns, at three workers."""
    viewers: dict[str, list[str]] = {
        "nobody watches": [],
        "atasks watch": ["watch", "--json"],
        "atasks watch, a hundredth of it": ["watch", "--json", "--sample", "0.01"],
        "atasks top": ["top"],
        "nobody watches, once more": [],
    }
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in viewers}
    async with fleet(3, 100) as workers:
        for _ in range(9):
            for name, arguments in viewers.items():
                async with _viewer(arguments) as viewer:
                    await in_flight(1000, 30, lambda: functions.echo(b""))
                    found[name].append(await _watched(workers, viewer))
    print(f"{'':<32} {'an await':>16} {'CPU of a call: workers':>30} {'caller':>14} {'viewer':>9} {'calls/s':>8}")
    quiet: tuple[float, ...] = ()
    for name, samples in found.items():
        row = tuple(statistics.median(values) for values in zip(*samples, strict=True))
        quiet = quiet or row
        latency, worker, caller = (
            f"{value * 1e6:>8.0f} us {value / base:>4.2f}" for value, base in zip(row[:3], quiet, strict=False)
        )
        print(f"{name:<32} {latency} {worker:>30} {caller} {row[3] * 1e6:>6.0f} us {row[4]:>8.0f}", flush=True)


@asynccontextmanager
async def _viewer(arguments: list[str]) -> AsyncIterator[psutil.Process | None]:
    """A viewer in a process of its own, which sees something by now."""
    if not arguments:
        yield None
        return
    transport = atasks.get_router().transport()
    assert isinstance(transport, AMQPTransport)
    where = ["--url", os.environ[VARIABLES[AMQP]], "--prefix", transport.session.topology.prefix]
    command = [sys.executable, "-m", "atasks", *arguments, *where]
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=nothing)
    assert process.stdout is not None
    sees = asyncio.create_task(process.stdout.read(1))
    while not sees.done():
        await functions.echo(b"")
    reading = asyncio.create_task(_read(process.stdout))
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()
        await reading


async def _read(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass


async def _watched(workers: list[psutil.Process], viewer: psutil.Process | None) -> tuple[float, ...]:
    """The median of an await of many; CPU seconds of a call at the workers, at the caller, and of the viewer; and
    calls a second."""
    took: list[float] = []

    async def call() -> None:
        begun = time.perf_counter()
        await functions.echo(b"")
        took.append(time.perf_counter() - begun)

    def used() -> list[float]:
        return [sum(map(cpu, workers)), cpu(psutil.Process()), 0.0 if viewer is None else cpu(viewer)]

    before = used()
    seconds = await in_flight(4000, 30, call)
    spent = [(now - then) / len(took) for now, then in zip(used(), before, strict=True)]
    return statistics.median(took), *spent, len(took) / seconds


async def memory() -> None:
    """Measure the memory that a call in flight holds, and growth over a million calls."""
    client = psutil.Process()
    release: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def local() -> None:
        await asyncio.shield(release)

    async with fleet(1, 100):
        of_call = await _held_by(lambda: functions.nap(3600.0))
        of_task = await _held_by(local)
        print(f"a call in flight holds {of_call:.2f} KiB at its caller, its asyncio task included;")
        print(f"an asyncio task that awaits a shielded future holds {of_task:.2f} KiB", flush=True)
    async with fleet(1, 100) as [worker]:
        print("calls so far    client MiB   worker MiB")
        for step in range(11):
            if step:
                await in_flight(100_000, 500, lambda: functions.echo(b"x" * 100))
            print(f"{step * 100_000:>12} {rss(client):>13.1f} {rss(worker):>12.1f}", flush=True)


async def _held_by(make: Callable[[], Coroutine[Any, Any, None]], count: int = 20_000) -> float:
    """KiB of memory for each of so many tasks of that coroutine, which are cancelled then."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    async with _cancelled([asyncio.create_task(make()) for _ in range(count)]):
        await asyncio.sleep(20.0)  # all of them are at the broker, and confirmed
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return (held - before) / 1024 / count


@asynccontextmanager
async def _cancelled(tasks: list[asyncio.Task[None]]) -> AsyncIterator[None]:
    """Cancel the tasks at the end of the block."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def sleeping() -> None:
    """Measure the memory that a call which sleeps for a day takes at its worker, by `tracemalloc` there."""
    count = 1000
    async with fleet(1, 100):
        await functions.traced()  # it begins there
        for name, sleep in {"plain": functions.sleeper, "resume=True": functions.resuming_sleeper}.items():
            held = []
            for number in (count // 10, 0, count):  # the first ones have made all that is made once
                async with _cancelled([asyncio.create_task(sleep(86_400.0)) for _ in range(number)]):
                    held.append(await functions.settled(number))
            each = (held[2] - held[1]) / 1024 / count
            print(f"{name:<12} {each:.2f} KiB for each of {count} calls that sleep", flush=True)


async def payloads() -> None:
    """Measure large payloads beside a plain copy through a socket. Medians of three."""
    async with fleet(1, 100) as workers:
        await _payload_rows("RabbitMQ", workers)
    async with atasks.local(workers=1):
        await functions.echo(b"")
        await _payload_rows("local", psutil.Process().children(recursive=True))
    rows = [(number, f"row {number} of a table") for number in range(100_000)]
    print("a table of 100 000 rows, 4 in flight: seconds per call")
    for name, variables in {"plain": {}, "zstd": {functions.ZSTD: "1"}}.items():
        if variables:
            atasks.ZstdCodec()
        async with fleet(1, 100, **variables):
            seconds = await in_flight(20, 4, lambda: functions.same(rows))
        size = len(await atasks.get_codec().encode(rows))
        print(f"  {name}: {seconds / 20:.3f} s, {size / 2**20:.2f} MiB each way", flush=True)
    atasks.CloudpickleCodec()


async def _payload_rows(transport: str, workers: list[psutil.Process]) -> None:
    """A line per size. What everything else on the machine used is the broker's share, if it is quiet."""
    print(f"{transport:<8}   in flight   MiB/s   socket's   CPU s per GiB: client   worker   all else")
    sizes = {"1 KiB": 2**10, "100 KiB": 100 * 2**10, "1 MiB": 2**20, "10 MiB": 10 * 2**20}
    if transport == "local":
        sizes |= {"100 MB": 10**8}
        if find_spec("numpy") is not None:
            sizes |= {"an array": 10**8}
    for name, size in sizes.items():
        wide = 1 if size == 10**8 else max(2, min(64, 8 * 2**20 // size))
        calls = max(20, min(5000, 200 * 2**20 // size))
        payload: Any = random.Random(size).randbytes(size)
        if name == "an array":
            payload = import_module("numpy").frombuffer(bytearray(payload), "u1")
        moved = 2 * calls * size / 2**30
        rows = []
        for _ in range(3):
            before = _spent(workers)
            seconds = await in_flight(calls, wide, lambda payload=payload: functions.echo(payload))  # type: ignore[misc]
            client, worker, all_of_it = (now - then for now, then in zip(_spent(workers), before, strict=True))
            rows.append((1024 * moved / seconds, client / moved, worker / moved, all_of_it / moved))
        rate, client, worker, all_of_it = (statistics.median(column) for column in zip(*rows, strict=True))
        plain = await asyncio.to_thread(_socket_rate, size, calls)
        print(
            f"{name:<8} {wide:>11} {rate:>7.0f} {plain:>10.0f} {client:>23.2f} {worker:>8.2f}"
            f" {all_of_it - client - worker:>10.2f}",
            flush=True,
        )


def _spent(workers: list[psutil.Process]) -> tuple[float, float, float]:
    """CPU seconds so far of this process, of the workers, and of the whole machine."""
    machine = psutil.cpu_times()
    return cpu(psutil.Process()), sum(map(cpu, workers)), machine.user + machine.system


def _socket_rate(size: int, calls: int) -> float:
    """MiB/s, both ways, of blocking sockets to an echo in another process: one message after the other."""
    with subprocess.Popen([sys.executable, ECHO_SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with socket.create_connection(("127.0.0.1", int(server.stdout.readline()))) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            payload = bytes(size)
            buffer = memoryview(bytearray(size))
            begun = time.perf_counter()
            for _ in range(calls):
                connection.sendall(len(payload).to_bytes(8, "big"))
                connection.sendall(payload)
                got = 0
                while got < size:
                    got += connection.recv_into(buffer[got:])
            seconds = time.perf_counter() - begun
    return 2 * calls * size / 2**20 / seconds


async def recursion() -> None:
    """Measure a nested await beside a flat one."""
    calls = 21_891
    async with fleet(2, 100):
        flat = []
        for _ in range(3):
            begun = time.perf_counter()
            await asyncio.gather(*(functions.echo(b"") for _ in range(calls)))
            flat.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        if await functions.fib(20) != 6765:
            raise BenchmarkFailed("fib(20) is 6765")
        other = time.perf_counter() - begun
    one = statistics.median(flat)
    print(f"fib(20), {calls} calls over 2 workers: {other:.2f} s, {1e6 * other / calls:.0f} us per call")
    print(f"a flat gather of {calls} echoes:        {one:.2f} s, {1e6 * one / calls:.0f} us per call")
    print(f"ratio {other / one:.1f}", flush=True)


async def resuming() -> None:
    """Measure a call that resumes beside a plain one. In turns, at two workers; medians."""
    shapes = {
        "a row of 20 calls": ("row", 20, 40),
        "a fan of 300 calls": ("fan", 300, 20),
        "no calls": ("row", 0, 200),
    }
    kinds = {"plain": functions.parent, "resume=True": functions.resuming_parent}
    print(f"{'':<20} {'plain':>12} {'resume=True':>12} {'ratio':>7}", flush=True)
    async with fleet(2, 400):
        for name, (shape, count, rounds) in shapes.items():
            found: dict[str, list[float]] = {kind: [] for kind in kinds}
            for number in range(rounds + 5):
                for kind, parent in kinds.items():
                    begun = time.perf_counter()
                    await parent(shape, count)
                    if number >= 5:  # both have got into their stride
                        found[kind].append(time.perf_counter() - begun)
            plain, resumes = (statistics.median(values) for values in found.values())
            print(
                f"{name:<20} {plain * 1e3:>9.2f} ms {resumes * 1e3:>9.2f} ms {resumes / plain:>7.2f}", flush=True
            )


async def streams() -> None:
    """Measure the items a second of one stream."""

    async def rate(window: int | None, count: int) -> float:
        begun = time.perf_counter()
        seen = 0
        async for _ in functions.numbers.options(window=window)(count):
            seen += 1
        if seen != count:
            raise BenchmarkFailed(f"{seen} of {count} items came")
        return count / (time.perf_counter() - begun)

    print("window     loopback items/s   AMQP items/s   (medians of three)")
    async with fleet(1, 100):
        for window in (None, 64, 1024):
            amqp = statistics.median([await rate(window, 50_000) for _ in range(3)])
            async with atasks.connect("loopback:"):
                loopback = statistics.median([await rate(window, 100_000) for _ in range(3)])
            print(f"{window or '':>6} {loopback:>20.0f} {amqp:>14.0f}", flush=True)


async def idle() -> None:
    """Measure the CPU time that waiting awaits take."""
    client = psutil.Process()
    async with (
        fleet(1, 10_000) as [worker],
        _cancelled([asyncio.create_task(functions.nap(3600.0)) for _ in range(10_000)]),
    ):
        await asyncio.sleep(10.0)
        before, begun = (cpu(client), cpu(worker)), time.perf_counter()
        await asyncio.sleep(40.0)  # past the first round of asking for them
        seconds = time.perf_counter() - begun
        shares = [100 * (cpu(p) - then) / seconds for p, then in zip((client, worker), before, strict=True)]
        print(f"10 000 calls that wait: client {shares[0]:.2f} %, worker {shares[1]:.2f} % of a processor")


STUDIES = {
    function.__name__: function
    for function in (fairness, width, watching, memory, sleeping, payloads, recursion, resuming, streams, idle)
}


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("study", nargs="*", choices=[[], *STUDIES], metavar="STUDY", help=", ".join(STUDIES))
    chosen = parser.parse_args().study or list(STUDIES)
    try:
        with servers(frozenset({AMQP})) as urls:
            os.environ[VARIABLES[AMQP]] = urls[AMQP]
            for name in chosen:
                print(f"\n{name}: {STUDIES[name].__doc__}", flush=True)
                asyncio.run(STUDIES[name]())
    except BenchmarkFailed as error:
        sys.exit(f"no result: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
