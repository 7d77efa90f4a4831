"""Random load under random faults, for as long as one likes; then the history is checked.

`python -m tests.faults.soak [--minutes N] [--seed N]` (or `make soak MINUTES=n`) runs three workers and a broker
of its own, calls one after the other, in gathers, in trees, with cancellations and deadlines, at least and at most
once, and meanwhile kills and freezes workers, cuts and holds connections, deletes and purges queues, raises
alarms, and restarts the broker. It prints what it did and what became of the calls, and exits with 1 if a promise
was broken, something hangs, or a queue, a message, a task or a descriptor is left behind.

The seed decides the order of load and faults; how they meet in time differs from run to run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import atasks
from atasks.testing import until
from tests.broker import Broker, PrivateNode
from tests.brokers.private_node import find_sbin
from tests.faults.history import Delivery, History
from tests.faults.proxy import Proxy, Role
from tests.faults.tasks import boom, crash, echo, fan, fib, work
from tests.faults.workers import Fleet, WorkerProcess

WORKERS = 3
CLIENTS = 12
HEARTBEAT = 2
PATIENCE = 120.0
"""Seconds within which every await ends, once the faults have ended."""
CONCURRENCY = 8
WORKER_DESCRIPTORS = 30
"""A worker has two connections, a few pipes and files, and for a while the connections of a queue that ails."""
LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"
ALLOWED = {"CallConnectionLost", "CallTimeout", "CancelledError", "Failed", "WorkerLost", "value"}


class Soak:
    """One run of it."""

    lasting = frozenset({"q", "dead", "r", "c"})
    """The kinds of queues that may be left."""

    def __init__(self, node: Broker, folder: Path, seed: int, minutes: float) -> None:
        node.queues()  # opens what asking takes
        self.process = psutil.Process()
        self.descriptors = self.process.num_fds()
        self.node = node
        self.history = History(folder / "runs")
        self.prefix = f"soak-{uuid.uuid4().hex}"
        self.fleet = Fleet(node, self.prefix, self.history.path)
        self.proxies = [Proxy(node.url), Proxy(node.url)]
        self.load_dice = random.Random(seed)
        self.fault_dice = random.Random(seed + 1)
        self.minutes = minutes
        self.ending = False
        self.faults: Counter[str] = Counter()
        self.trees: Counter[str] = Counter()
        self.broken: list[str] = []
        self.draining: list[WorkerProcess] = []
        self.disturbed: list[tuple[float, float]] = []
        """When faults began and ended, by the monotonic clock."""
        self.killed = 0
        """Workers that did not clean up after themselves."""
        self.suspects: set[str] = set()
        """Keys of the calls with which something is wrong."""
        self.log = folder / "log"
        """The file for the log of the caller, and for those of workers that have ended."""

    async def run(self) -> None:
        """Load and faults, and then the checks: `broken` says what was."""
        with self.logged(), self.history.listening():
            await self._run()

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Keep what the caller logs, whatever level the others are shown."""
        logger = logging.getLogger("atasks.amqp")
        handler = logging.FileHandler(self.log)
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()
            logger.setLevel(level)

    async def _run(self) -> None:
        caller, _ = self.proxies
        await asyncio.to_thread(self.fleet.start, WORKERS, **self.options)
        end = time.monotonic() + 60 * self.minutes
        before = asyncio.all_tasks()
        async with atasks.connect(caller.url(heartbeat=HEARTBEAT), prefix=self.prefix):
            clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
            while time.monotonic() < end and not any(client.done() for client in clients):
                await asyncio.sleep(self.fault_dice.uniform(0.5, 5))
                await self.fault()
            self.ending = True
            hanging = set(clients)
            patience = time.monotonic() + PATIENCE
            while hanging and time.monotonic() < patience:
                await self.replace_dead()  # the last calls may kill workers too
                _, hanging = await asyncio.wait(hanging, timeout=1)
            self.broken += [f"{len(hanging)} clients hang"] * bool(hanging)
            for client in hanging:
                client.print_stack()
                client.cancel()
            for result in await asyncio.gather(*clients, return_exceptions=True):
                if isinstance(result, Exception):
                    self.broken.append(f"a client failed: {result!r}")
            self.check()
            await self.quiet()
            with contextlib.suppress(AssertionError):  # the last workers may start or drain still
                await until(lambda: not list(self.leaks()), "nothing is left behind", PATIENCE)
            self.broken += self.leaks()
        self.broken += [f"task {task!r} is left" for task in asyncio.all_tasks() - before]

    @property
    def options(self) -> dict[str, Any]:
        url = self.proxies[1].url(heartbeat=HEARTBEAT)
        return {"url": url, "concurrency": CONCURRENCY, "grace": 5.0, "queue_type": "classic"}

    # -- the load

    async def client(self) -> None:
        """Calls, one kind after the other, until the end."""
        kinds: list[tuple[int, Callable[[], Awaitable[Any]]]] = [
            (30, self.one),
            (10, self.some),
            (5, self.failing),
            (5, self.timed),
            (5, self.cancelled),
            (2, self.tree),
            (1, self.crashing),
        ]
        weights, choices = zip(*kinds, strict=True)
        while not self.ending:
            (choice,) = self.load_dice.choices(choices, weights)
            await choice()

    def delivery(self) -> Delivery:
        return self.load_dice.choice(["at_least_once", "at_least_once", "at_most_once"])

    async def one(self) -> None:
        await self.history.call(echo, delivery=self.delivery())

    async def some(self) -> None:
        delivery, seconds = self.delivery(), self.load_dice.uniform(0, 0.5)
        calls = self.history.start(self.load_dice.randrange(1, 40), work, seconds, delivery=delivery)
        await asyncio.gather(*calls)

    async def failing(self) -> None:
        await self.history.call(boom, delivery=self.delivery())

    async def timed(self) -> None:
        await self.history.call(work, self.load_dice.uniform(0, 1), delivery=self.delivery(), timeout=0.5)

    async def cancelled(self) -> None:
        (task,) = self.history.start(1, work, 30.0, delivery=self.delivery())
        await asyncio.sleep(self.load_dice.uniform(0, 0.5))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def crashing(self) -> None:
        await self.history.call(crash, "kill", delivery=self.delivery(), max_attempts=2)

    async def tree(self) -> None:
        """A tree may end in `WorkerLost`: three workers died with one of its calls."""
        calls: list[tuple[Awaitable[int], int]] = [(fib(9), 34), (fan(100), 4950)]
        awaitable, expected = self.load_dice.choice(calls)
        for other, _ in calls:
            if other is not awaitable:
                other.close()  # type: ignore[attr-defined]  # a coroutine that was never awaited
        try:
            value = await awaitable
        except atasks.WorkerLost:
            self.trees["WorkerLost"] += 1
        else:
            self.trees["value"] += 1
            if value != expected:
                self.broken.append(f"a tree gave {value} instead of {expected}")

    # -- the faults

    async def fault(self) -> None:
        """One of them; the dead are replaced first."""
        await self.replace_dead()
        kinds = self.fault_kinds()
        weights, choices = zip(*kinds, strict=True)
        (choice,) = self.fault_dice.choices(choices, weights)
        name = choice.__name__  # type: ignore[attr-defined]
        self.faults[name] += 1
        print(f"{time.strftime('%T')} {name}; {self.ended_awaits()} awaits have ended", flush=True)
        began = time.monotonic()
        try:
            await choice()
        finally:
            self.disturbed.append((began, time.monotonic()))

    def ended_awaits(self) -> int:
        return len(self.history.awaits) + self.trees.total()

    def fault_kinds(self) -> list[tuple[int, Callable[[], Awaitable[Any]]]]:
        """Faults, each with how often it comes."""
        return [
            (8, self.cut),
            (4, self.kill_worker),
            (3, self.drain_worker),
            (2, self.silence),
            (2, self.freeze_worker),
            (2, self.slow),
            (1, self.close_connections),
            (1, self.delete_work_queue),
            (1, self.purge_work_queue),
            (1, self.delete_reply_queues),
            (1, self.raise_alarm),
            (1, self.kill_broker),
            (1, self.stop_broker),
        ]

    def worker(self) -> WorkerProcess | None:
        running = [worker for worker in self.fleet.workers if worker.running]
        return self.fault_dice.choice(running) if running else None

    async def replace_dead(self) -> None:
        """Start workers until there are as many as there should be, and report those that ended by themselves."""
        for worker in self.fleet.workers:
            code = worker.process.poll()
            # One that starts while the broker is down says so; one that is told to drain may not listen yet.
            excused = code in (None, 0, -signal.SIGKILL, -signal.SIGTERM) or "ConnectFailed" in worker.output
            if not excused:
                self.broken.append(f"worker {worker.pid} ended with {code}:\n{worker.output[-2000:]}")
        for worker in [worker for worker in self.fleet.workers if not worker.running]:
            self.killed += worker.process.returncode != 0
            self.keep_log(worker)
            worker.close()
            self.fleet.workers.remove(worker)
        missing = WORKERS - len(self.fleet.workers)
        await asyncio.to_thread(self.fleet.start, missing, wait=False, **self.options)

    def keep_log(self, worker: WorkerProcess) -> None:
        with self.log.open("a") as log:
            log.writelines(f"{line}  [worker {worker.pid}]\n" for line in worker.output.splitlines())

    async def cut(self) -> None:
        role: Role | None = self.fault_dice.choice([None, "publish", "consume"])
        self.fault_dice.choice(self.proxies).drop(role)

    async def silence(self) -> None:
        proxy = self.fault_dice.choice(self.proxies)
        proxy.blackhole()
        await asyncio.sleep(self.fault_dice.uniform(1, 12))
        proxy.resume()

    async def slow(self) -> None:
        proxy = self.fault_dice.choice(self.proxies)
        proxy.delay(0.05)
        await asyncio.sleep(3)
        proxy.resume()

    async def kill_worker(self) -> None:
        if worker := self.worker():
            await asyncio.to_thread(worker.kill)

    async def drain_worker(self) -> None:
        """Drain one that does not drain yet: a second signal would end it at once."""
        if (worker := self.worker()) and worker not in self.draining:
            self.draining.append(worker)
            worker.signal(signal.SIGTERM)

    async def freeze_worker(self) -> None:
        if worker := self.worker():
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(self.fault_dice.uniform(1, 12))
            worker.signal(signal.SIGCONT)

    async def close_connections(self) -> None:
        await asyncio.to_thread(self.node.close_all_connections)

    async def delete_work_queue(self) -> None:
        await asyncio.to_thread(self.change_queues, f"{self.prefix}.q.default.default", "queue_delete")

    async def purge_work_queue(self) -> None:
        await asyncio.to_thread(self.change_queues, f"{self.prefix}.q.default.default", "queue_purge")

    async def delete_reply_queues(self) -> None:
        await asyncio.to_thread(self.change_queues, f"{self.prefix}.r.", "queue_delete")

    def change_queues(self, beginning: str, action: str) -> None:
        names = [queue.name for queue in self.node.queues() if queue.name.startswith(beginning)]
        with self.node.channel() as channel:
            for name in names:
                getattr(channel, action)(name)

    async def raise_alarm(self) -> None:
        """Have the broker say that it is short of memory. One that has just come up may not answer to that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.node.ctl, "set_vm_memory_high_watermark", "0.00001")
        await asyncio.sleep(self.fault_dice.uniform(0, 3))
        await asyncio.to_thread(self.node.ctl, "set_vm_memory_high_watermark", "0.4")

    async def kill_broker(self) -> None:
        await asyncio.to_thread(self.node.kill)
        await asyncio.to_thread(self.node.start)

    async def stop_broker(self) -> None:
        await asyncio.to_thread(self.node.restart)

    # -- the end

    def check(self) -> None:
        breaches = self.history.breaches()
        self.broken += [f"{key}: {problem}" for key, problem in breaches]
        self.suspects.update(key for key, _ in breaches)
        strange = set(self.history.errors()) - ALLOWED
        if strange:
            first = next(item for item in self.history.awaits if type(item.error).__name__ in strange)
            self.broken.append(f"endings that nothing explains: {strange}; the first: {first!r}")

    async def quiet(self) -> None:
        def empty() -> bool:
            return not any(queue.messages for queue in self.fleet.queues() if not queue.name.endswith(".dead"))

        try:
            await until(empty, "every work queue is empty", PATIENCE)
        except AssertionError as breach:
            self.broken.append(f"{breach}: {[queue for queue in self.fleet.queues() if queue.messages]}")

    def leaks(self) -> Iterator[str]:
        """Yield what is left at the broker and in the workers, and should not be."""
        queues = [queue for queue in self.node.queues() if queue.name.startswith(f"{self.prefix}.")]
        kinds = Counter(queue.name.removeprefix(f"{self.prefix}.").partition(".")[0] for queue in queues)
        workers = [worker for worker in self.fleet.workers if worker.running]
        clients = 1 + len(workers)
        abandoned = sum(queue.name.startswith(f"{self.prefix}.r.") and not queue.consumers for queue in queues)
        if kinds["r"] - abandoned != clients:
            yield f"{kinds['r'] - abandoned} reply queues are consumed by {clients} clients"
        # A client that comes back while its broker starts may not find its reply queue, and takes another one.
        restarts = self.faults["kill_broker"] + self.faults["stop_broker"] + self.faults["delete_reply_queues"]
        if abandoned > self.killed + clients * restarts:
            yield f"{abandoned} reply queues are left"
        if kinds["c"] != len(workers):
            yield f"{kinds['c']} control queues are left by {len(workers)} workers"
        if unknown := set(kinds) - self.lasting:
            names = [queue.name for queue in queues if queue.name.split(".")[1] in unknown]
            yield f"queues of other kinds are left: {names[:5]}"
        for worker in workers:
            descriptors = psutil.Process(worker.pid).num_fds()
            if descriptors > WORKER_DESCRIPTORS:
                yield f"worker {worker.pid} has {descriptors} descriptors"

    def report(self) -> None:
        made, runs = len(self.history.made), self.history.runs()
        print(f"faults: {dict(sorted(self.faults.items()))}")
        print(f"awaits: {made} calls: {dict(sorted(self.history.errors().items()))}; trees: {dict(self.trees)}")
        print(f"runs: {len(runs)}, of them cut off: {sum(run.ending is None for run in runs)}")
        print(f"memory of the caller and its records: {self.process.memory_info().rss / 2**20:.0f} MiB")
        for problem in self.broken:
            print(f"BROKEN: {problem}")

    def close(self) -> None:
        for worker in self.fleet.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
        for worker in self.fleet.workers:
            self.keep_log(worker)
        if self.broken:
            print(self.fleet.logs())
        self.tell()
        self.fleet.close()
        for proxy in self.proxies:
            proxy.close()
        left = self.process.num_fds() - self.descriptors
        self.broken += [f"{left} descriptors are left"] * (left > 0)

    def tell(self) -> None:
        """Print the lines of the logs about each call with which something is wrong, in the order of time."""
        lines = sorted(self.log.read_text().splitlines()) if self.log.exists() else []
        for key in self.suspects:
            print(f"--- call {key}")
            for call_id in {run.call_id for run in self.history.runs(key)}:
                print("\n".join(line for line in lines if call_id in line))


def main() -> int:
    parser = argparse.ArgumentParser(description="Random load under random faults.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, which is printed")
    parser.add_argument("--resume", action="store_true", help="calls that resume, instead of all kinds of calls")
    parser.add_argument("--folder", type=Path, help="where the records and logs stay; default: nowhere")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    sbin = find_sbin()
    if sbin is None:
        print("the soak stops and kills its broker: install rabbitmq-server", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.ERROR, format=LOG_FORMAT)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.ERROR)
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    print(f"seed {seed}, {arguments.minutes:g} minutes", flush=True)
    node = PrivateNode(sbin)
    with tempfile.TemporaryDirectory() as folder:
        try:
            node.start()
            kept = Path(arguments.folder or folder)
            kept.mkdir(parents=True, exist_ok=True)
            kind = importlib.import_module("tests.faults.soak_resume").ResumeSoak if arguments.resume else Soak
            soak = kind(node, kept, seed, arguments.minutes)
            try:
                asyncio.run(soak.run())
            finally:
                soak.close()
            soak.report()
        finally:
            node.close()
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
