"""A program that is served over a real broker."""

from __future__ import annotations

import os
from signal import SIGTERM
from urllib.parse import urlsplit

import psutil

from tests.cli.command import Command
from tests.cli.shell import Shell

TASKS = """
    import asyncio, concurrent.futures, os, pathlib, threading, time
    from atasks import atask

    @atask(namespace="NAMESPACE")
    async def add(a, b):
        return a + b

    @atask(namespace="NAMESPACE")
    async def pid():
        return os.getpid()

    @atask(namespace="NAMESPACE", max_attempts=1)
    async def die():
        os.kill(os.getpid(), 9)

    @atask(namespace="NAMESPACE")
    async def gated():
        print("running", flush=True)
        await asyncio.to_thread(pathlib.Path("gate").read_text)  # a pipe: until the test writes to it
        return "through"

    @atask(namespace="NAMESPACE")
    async def handed_on():
        first = not pathlib.Path("begun").exists()
        pathlib.Path("begun").touch()
        print("running", flush=True)
        if first:
            await asyncio.Event().wait()
        return "through"

    @atask(namespace="NAMESPACE", max_attempts=1)
    async def in_threads(which):
        loop = asyncio.get_running_loop()
        print("running", flush=True)
        if which == "to_thread":
            await asyncio.to_thread(time.sleep, 60)
        elif which == "pool":
            await loop.run_in_executor(concurrent.futures.ThreadPoolExecutor(1), time.sleep, 60)
        elif which == "left":
            with concurrent.futures.ThreadPoolExecutor(1) as pool:  # waits for its threads when it is left
                await loop.run_in_executor(pool, time.sleep, 60)
        else:
            threading.Thread(target=time.sleep, args=(60,), name="mine").start()
            await asyncio.Event().wait()

    @atask(namespace="NAMESPACE", max_attempts=1)
    async def leave():
        async def child():
            raise SystemExit(3)
        await asyncio.create_task(child())

    @atask(namespace="NAMESPACE", queue="gpu")
    async def train():
        return "trained"

    @atask(namespace="NAMESPACE", max_attempts=1)
    async def forever():
        print("running", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("cancelled", flush=True)
"""

CLIENT = """
    import tasks

    async def aiomain(task="add", args=()):
        print(await getattr(tasks, task)(*args))
"""


COUNTING = """
    import asyncio, tasks

    async def aiomain(other_than=(), count=1):
        found = set()
        while len(found) < count:
            pids = await asyncio.gather(*(tasks.pid() for _ in range(10)))
            found.update(set(pids) - set(other_than))
        print(*sorted(found))
"""


def workers(supervisor: Command) -> list[psutil.Process]:
    """The processes of the supervisor, the oldest first."""
    return sorted(psutil.Process(supervisor.process.pid).children(), key=lambda process: process.pid)


class App:
    """The files of a program in a namespace of its own, and the commands that run it."""

    def __init__(self, shell: Shell, url: str, namespace: str) -> None:
        self.shell = shell
        self.namespace = namespace
        address = urlsplit(url)
        self.shown = f"amqp://{address.hostname}:{address.port}/"
        self.gate = shell.directory / "gate"
        os.mkfifo(self.gate)
        self.env = {"ATASKS_URL": url}
        shell.write("tasks.py", TASKS.replace("NAMESPACE", namespace))
        shell.write("client.py", CLIENT)

    def serve(self, *arguments: str) -> Command:
        """A server, ready."""
        targets = arguments or ("tasks.py",)
        command = self.shell.start(
            "run", *targets, "--mode", "server", "--namespace", self.namespace, env=self.env
        )
        command.wait_for("atasks: serving")
        return command

    def supervise(self, *options: str, target: str = "tasks.py", env: dict[str, str] | None = None) -> Command:
        """A server that was told to supervise worker processes, once they serve."""
        command = self.start(*options, target=target, env=env)
        command.wait_for("serve")
        return command

    def start(self, *options: str, target: str = "tasks.py", env: dict[str, str] | None = None) -> Command:
        """A server that has just been started."""
        arguments = ("run", target, "--mode", "server", "--namespace", self.namespace, *options)
        return self.shell.start(*arguments, env={**self.env, **(env or {})})

    def call(self, task: str, *arguments: str) -> Command:
        """A client that awaits one atask."""
        where = ("--mode", "client", "--namespace", self.namespace)
        return self.shell.start("run", "client.py", *where, "-o", f"task={task}", *arguments, env=self.env)

    def pids(self, *, count: int = 1, other_than: list[int] | None = None) -> list[int]:
        """The first pids of workers that answer, once so many different ones have."""
        self.shell.write("counting.py", COUNTING)
        options = ("-o", f"count={count}", "-o", f"other_than={other_than or []}")
        arguments = ("run", "counting.py", "--mode", "client", "--namespace", self.namespace, *options)
        done = self.shell.run(*arguments, env=self.env)
        assert done.code == 0, done.err
        return [int(word) for word in done.out.split()]

    def end(self, server: Command) -> str:
        """Have it drain: what it wrote to stderr."""
        server.signal(SIGTERM)
        done = server.finish()
        assert done.code == 0, done.err
        return done.err
