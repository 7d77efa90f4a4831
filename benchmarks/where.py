"""`python -m benchmarks.where`: where the processor's time of one call goes, over RabbitMQ, 500 calls in flight.

Samples the stacks of the client's and the worker's process with py-spy, which must be installed and may need root,
and shares out the CPU time per call by the module of the innermost Python frame. Nothing else should be running.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from benchmarks.__main__ import servers
from benchmarks.catalogue import AMQP
from benchmarks.harness import VARIABLES
from benchmarks.load import BenchmarkFailed
from benchmarks.processes import Child

SECONDS = 8
STAGES = (
    ("asyncio: tasks, futures, callbacks", ("asyncio/", "selectors.py", "contextvars", "_weakrefset.py")),
    ("client library: frames and channels", ("aiormq/", "pamqp/", "aio_pika/")),
    ("transport: messages, confirms, acks", ("atasks/transport/", "atasks/wire.py", "atasks/worker/recent.py")),
    ("codec: arguments and result", ("atasks/codecs/",)),
    (
        "router: the call and its reply",
        ("atasks/router.py", "atasks/tasks.py", "atasks/current.py", "atasks/options.py"),
    ),
    ("worker: slots, run, reply", ("atasks/",)),
)
"""Stages, each with parts of the paths of its files: the first match of a frame's file counts."""


async def sampled(pid: int, target: str) -> Counter[str]:
    """Stages, by samples of that process."""
    process = await asyncio.create_subprocess_exec(
        "py-spy", "record", "--pid", str(pid), "--duration", str(SECONDS), "--rate", "500", "--gil",
        "--format", "raw",
        "--full-filenames", "--output", target, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    if process.returncode:
        raise BenchmarkFailed(f"py-spy: {said.decode().strip().splitlines()[-1]}")
    return counted(target)


def counted(target: str) -> Counter[str]:
    """Stages, in a file of py-spy's: a stack and the number of its samples in each line."""
    found: Counter[str] = Counter()
    for line in Path(target).read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        found[stage(stack.split(";")[-1])] += int(count)
    return found


def stage(frame: str) -> str:
    """The stage that a frame, `function (file:line)`, belongs to."""
    for name, files in STAGES:
        if any(file in frame for file in files):
            return name
    return "the benchmark itself"


async def main(url: str) -> None:
    queue = f"where-{os.getpid()}"
    environ = {VARIABLES[AMQP]: url}
    module = "benchmarks.atasks_amqp"
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            Child.start(Path(sys.executable), module, "client", queue, environ=environ)
        )
        worker = await stack.enter_async_context(
            Child.start(Path(sys.executable), module, "worker", queue, environ=environ)
        )
        load: dict[str, float] = {"inflight": 500, "seconds": 1.0, "size": 100}
        await client.ask(load, 1.0)
        processes = [psutil.Process(client.pid), psutil.Process(worker.pid)]
        # The CPU time per call is measured without py-spy, which stops the processes for each sample.
        before = [sum(process.cpu_times()[:2]) for process in processes]
        answer = await client.ask({**load, "seconds": 5.0}, 5.0)
        spent = [sum(process.cpu_times()[:2]) - then for process, then in zip(processes, before, strict=True)]
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        profiled = asyncio.create_task(client.ask({**load, "seconds": SECONDS + 2.0}, SECONDS + 2.0))
        shares = await asyncio.gather(*(sampled(process.pid, f"{folder}/{process.pid}") for process in processes))
        await profiled
    print(
        f"{answer['calls'] / answer['seconds']:.0f} calls/s, 500 in flight, 100 bytes; CPU microseconds per call"
    )
    print(f"{'':<40} {'client':>8} {'worker':>8}")
    costs = [1e6 * cpu / answer["calls"] for cpu in spent]
    for name in (*(name for name, _ in STAGES), "the benchmark itself"):
        row = [cost * found[name] / found.total() for cost, found in zip(costs, shares, strict=True)]
        print(f"{name:<40} {row[0]:>8.1f} {row[1]:>8.1f}")
    print(f"{'together':<40} {costs[0]:>8.1f} {costs[1]:>8.1f}")


if __name__ == "__main__":
    if shutil.which("py-spy") is None:
        sys.exit("py-spy is needed: pip install py-spy")
    try:
        with servers(frozenset({AMQP})) as urls:
            asyncio.run(main(urls[AMQP]))
    except BenchmarkFailed as error:
        sys.exit(f"no result: {error}")
