"""A fleet of two real workers, and the commands that look at it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from tests.cli.command import Command, Done
from tests.cli.shell import Shell
from tests.waiting import wait_until

__all__ = ["FleetOfTwo"]

TASKS = """
    import asyncio, pathlib
    from atasks import Limit, atask, current_call

    @atask(namespace="NAMESPACE", name="shop.leaf", queue="leaves")
    async def leaf(gate):
        while not pathlib.Path(gate).exists():
            await asyncio.sleep(0.02)
        return "leaf"

    @atask(namespace="NAMESPACE", name="shop.nobody", queue="unserved")
    async def nobody():
        pass

    @atask(namespace="NAMESPACE", name="shop.middle")
    async def middle(gate):
        return await leaf(gate)

    @atask(namespace="NAMESPACE", name="shop.top")
    async def top(gate):
        await asyncio.gather(middle(gate), nobody.options(timeout=300)(), return_exceptions=True)
        return "top"

    @atask(namespace="NAMESPACE", name="shop.add")
    async def add(a, b=1):
        return a + b

    @atask(namespace="NAMESPACE", name="shop.count")
    async def count(n):
        current_call().report(n, 10, "counted")
        return n

    @atask(namespace="NAMESPACE", name="shop.numbers")
    async def numbers():
        yield 1

    bank, ledger = (Limit(name, at_once=1, namespace="NAMESPACE") for name in ("bank", "ledger"))
    holding = []

    async def hold(name):
        holding.append(name)
        while len(holding) < 2:
            await asyncio.sleep(0.02)

    @atask(namespace="NAMESPACE", name="shop.pay", limit=bank)
    async def pay():
        await hold("bank")
        await book()

    @atask(namespace="NAMESPACE", name="shop.book", limit=ledger)
    async def book():
        pass

    @atask(namespace="NAMESPACE", name="shop.audit", limit=ledger)
    async def audit():
        await hold("ledger")
        await charge()

    @atask(namespace="NAMESPACE", name="shop.charge", limit=bank)
    async def charge():
        pass

    @atask(namespace="NAMESPACE", name="shop.stuck")
    async def stuck():
        await asyncio.gather(pay(), audit())

    @atask(namespace="NAMESPACE", name="shop.fail")
    async def fail():
        raise ValueError("it fails")
"""

CLIENT = """
    import tasks
    from atasks import CallCancelled

    async def aiomain(task="add", args=()):
        try:
            print(await getattr(tasks, task)(*args), flush=True)
        except CallCancelled:
            print("cancelled", flush=True)
"""


class FleetOfTwo:
    """One worker of the queue `default`, and one of the queue `leaves`."""

    def __init__(self, directory: Path, url: str, namespace: str) -> None:
        self.shell = Shell(directory)
        self.namespace = namespace
        self.env = {"ATASKS_URL": url}
        self.shell.write("tasks.py", TASKS.replace("NAMESPACE", namespace))
        self.shell.write("client.py", CLIENT)
        options = ("--mode", "server", "--namespace", namespace)
        self.workers = [
            self.shell.start("run", "tasks.py", *options, "--queue", queue, env=self.env)
            for queue in ("default", "leaves")
        ]
        for worker in self.workers:
            worker.wait_for("atasks: serving")
        self.gates = 0
        self.patience = ("--expect", "2", "--timeout", "20")
        """Commands wait for both workers, and no longer."""

    def start(self, *arguments: str) -> Command:
        """A command about this fleet."""
        return self.shell.start(*arguments, "--namespace", self.namespace, *self.patience, env=self.env)

    def run(self, *arguments: str, code: int = 0) -> Done:
        """Run the command until it ends, with this exit code."""
        done = self.start(*arguments).finish()
        assert done.code == code, (done.out, done.err)
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run the command with `--json`, and return the object that it writes."""
        return json.loads(self.run(*arguments, "--json", code=code).out)

    def call(self, task: str, *arguments: object) -> Command:
        """A client that awaits an atask."""
        where = ("--mode", "client", "--namespace", self.namespace)
        options = ("-o", f"task={task}", "-o", f"args={json.dumps(arguments)}")
        return self.shell.start("run", "client.py", *where, *options, env=self.env)

    def tree(self) -> tuple[Command, Path]:
        """A client that awaits a tree of calls, which has grown by then, and ends when the gate exists."""
        self.gates += 1
        gate = self.shell.directory / f"gate{self.gates}"
        client = self.call("top", str(gate))
        wait_until(lambda: "running" in [call["state"] for call in self.json("ps")["calls"]])
        return client, gate

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            worker.process.send_signal(signal.SIGKILL)
        self.shell.close()
