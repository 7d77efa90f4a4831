"""Workers that are processes of their own, with modules of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from json import dumps
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import RemoteError, UnknownTask, get_router
from atasks.namespaces import namespaces
from atasks.testing import soon, until

ROOT = Path(__file__).parent.parent.parent


class Fleet:
    """Starts worker processes that serve module files of this test."""

    def __init__(self, folder: Path, url: str, prefix: str) -> None:
        self.folder = folder
        self.url = url
        self.prefix = prefix
        self.namespace = f"fleet-{prefix.removeprefix('test-')}"

    def write(self, name: str, text: str) -> None:
        """A module that workers can serve; NAMESPACE and FOLDER in it are this test's own."""
        source = textwrap.dedent(text).replace("NAMESPACE", repr(self.namespace))
        (self.folder / f"{name}.py").write_text(source.replace("FOLDER", repr(str(self.folder))))

    @asynccontextmanager
    async def worker(self, module: str, **options: Any) -> AsyncIterator[Process]:
        """A process that serves the module, until the end of the block."""
        given = dumps({"namespace": self.namespace, "prefix": self.prefix, **options})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "tests.amqp.serving", module, self.url, given),
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(self.folder)))},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert await soon(process.stdout.readline()) == b"ready\n"
            yield process
        finally:
            process.stdin.close()
            try:
                rest = await soon(process.stdout.read())
                code = await soon(process.wait())
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        assert (code, rest) == (0, b"drained\n")

    async def call(self, name: str, *args: Any) -> Any:
        """Await an atask by its name alone: this process does not have its module."""
        return await soon(get_router(self.namespace).send_request(name, *args))


@pytest.fixture
def fleet(tmp_path: Path, amqp_url: str, prefix: str, amqp_leaks: None) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, amqp_url, prefix)
    yield fleet
    namespaces.unregister(fleet.namespace)


@pytest.fixture
async def connected(fleet: Fleet) -> AsyncIterator[None]:
    """This process as a caller."""
    async with atasks.connect(fleet.url, namespace=fleet.namespace, prefix=fleet.prefix):
        yield


MODULE = """
    import os
    from atasks import atask

    @atask(namespace=NAMESPACE, name="{0}")
    async def {0}(n):
        return "{0}", n, os.getpid()
"""


@pytest.mark.usefixtures("connected")
async def test_workers_with_different_atasks_on_one_queue(fleet: Fleet) -> None:
    for name in ("red", "green", "blue"):
        fleet.write(f"{name}_tasks", MODULE.format(name))
    async with fleet.worker("red_tasks") as red, fleet.worker("green_tasks") as green:
        names = ["red", "green"] * 20
        found = await asyncio.gather(*(fleet.call(name, n) for n, name in enumerate(names)))
        pids = {"red": red.pid, "green": green.pid}
        assert found == [(name, n, pids[name]) for n, name in enumerate(names)]
        with pytest.raises(UnknownTask, match="'blue'"):
            await fleet.call("blue", 1)
        async with fleet.worker("blue_tasks") as blue:
            assert await fleet.call("blue", 2) == ("blue", 2, blue.pid)


@pytest.mark.usefixtures("connected")
async def test_exceptions_of_another_process(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.write(
        "strange_tasks",
        """
        from atasks import atask
        from atasks.testing.exceptions import Refused

        class StrangeError(Exception):
            pass

        @atask(namespace=NAMESPACE, name="strange")
        async def strange():
            raise StrangeError("what it says")

        @atask(namespace=NAMESPACE, name="known")
        async def known():
            raise Refused(404, "not here")

        @atask(namespace=NAMESPACE, name="leave")
        def leave():
            raise SystemExit(3)
        """,
    )
    async with fleet.worker("strange_tasks") as worker:
        with pytest.raises(RemoteError) as remote:
            await fleet.call("strange")
        assert remote.value.type_name == "strange_tasks.StrangeError"
        assert remote.value.message == "what it says"
        assert "in strange" in remote.value.traceback
        assert f"pid {worker.pid}" in remote.value.__notes__[-1]
        with pytest.raises(Exception, match="404: not here") as own:
            await fleet.call("known")
        assert type(own.value).__name__ == "Refused"
        assert vars(own.value)["code"] == 404
        with pytest.raises(RemoteError, match="SystemExit: 3"):
            await fleet.call("leave")
        monkeypatch.syspath_prepend(str(fleet.folder))
        with pytest.raises(Exception, match="what it says") as rebuilt:
            await fleet.call("strange")
        assert type(rebuilt.value) is sys.modules["strange_tasks"].StrangeError
    del sys.modules["strange_tasks"]


@pytest.mark.usefixtures("connected")
async def test_calls_spread_over_processes(fleet: Fleet) -> None:
    fleet.write(
        "meeting_tasks",
        """
        import asyncio, os, pathlib
        from atasks import atask

        @atask(namespace=NAMESPACE, name="meet")
        async def meet(n):
            here = pathlib.Path(FOLDER, f"{n}.{os.getpid()}")
            here.touch()
            while len({path.suffix for path in here.parent.glob(f"{n}.*")}) < 2:
                await asyncio.sleep(0.005)
            return os.getpid()
        """,
    )
    async with (
        fleet.worker("meeting_tasks", concurrency=1) as one,
        fleet.worker("meeting_tasks", concurrency=1) as two,
    ):
        for n in range(3):
            found = await asyncio.gather(fleet.call("meet", n), fleet.call("meet", n))
            assert set(found) == {one.pid, two.pid}


@pytest.mark.usefixtures("connected")
async def test_recursion_over_processes(fleet: Fleet) -> None:
    fleet.write(
        "fib_tasks",
        """
        import asyncio, os
        from atasks import atask

        @atask(namespace=NAMESPACE, name="fib")
        async def fib(n):
            if n < 2:
                return n, {os.getpid()}
            (a, here), (b, there) = await asyncio.gather(fib(n - 1), fib(n - 2))
            return a + b, here | there | {os.getpid()}
        """,
    )
    async with fleet.worker("fib_tasks", concurrency=2) as one, fleet.worker("fib_tasks", concurrency=2) as two:
        value, pids = await fleet.call("fib", 12)
        assert value == 144
        assert pids == {one.pid, two.pid}


@pytest.mark.usefixtures("connected")
async def test_drain_on_a_signal(fleet: Fleet) -> None:
    fleet.write(
        "slow_tasks",
        """
        import asyncio, os, pathlib
        from atasks import atask

        @atask(namespace=NAMESPACE, name="slow")
        async def slow(n):
            pathlib.Path(FOLDER, f"started-{n}").touch()
            while not pathlib.Path(FOLDER, "go").exists():
                await asyncio.sleep(0.005)
            return n, os.getpid()
        """,
    )
    async with fleet.worker("slow_tasks", concurrency=2) as one:
        tasks = [asyncio.create_task(fleet.call("slow", n)) for n in range(2)]
        await until(lambda: len(list(fleet.folder.glob("started-*"))) == 2)
        tasks += [asyncio.create_task(fleet.call("slow", n)) for n in range(2, 6)]
        one.terminate()
        async with fleet.worker("slow_tasks", concurrency=4) as two:
            await until(lambda: len(list(fleet.folder.glob("started-*"))) == 6)
            (fleet.folder / "go").touch()
            found = await soon(asyncio.gather(*tasks))
            assert found == [(n, one.pid if n < 2 else two.pid) for n in range(6)]
