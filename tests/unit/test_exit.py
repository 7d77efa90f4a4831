"""Programs that end while connections or runs of pipelines are open: within a bound, and with their exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import atasks
from atasks.caller.background import EXIT_SECONDS
from tests.broker import Broker
from tests.busy import without_warnings
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

SOON = 60.0
"""Seconds in which a program has ended, its start included."""

CONNECTED = """
    import sys, threading, time
    from contextlib import ExitStack
    import atasks
    from atasks import atask

    @atask
    async def add(a: int, b: int) -> int:
        return a + b

    @atask
    async def block() -> None:
        time.sleep(60)

    @atask
    async def numbers():
        for number in range(1000):
            yield number

    def enter(url):
        stack = ExitStack()
        stack.enter_context(atasks.connect_sync(url))
        if not url.startswith("amqp"):
            assert add.sync(1, 2) == 3
        return stack

    def main(url, how):
        global stack, stream
        if how == "thread":
            thread = threading.Thread(target=lambda: globals().update(stack=enter(url)))
            thread.start()
            thread.join()
            sys.exit(3)
        stack = enter(url)
        match how:
            case "exit":
                sys.exit(3)
            case "raise":
                raise ValueError("of the program")
            case "twice":
                stack.enter_context(atasks.connect_sync(url))
                sys.exit(3)
            case "stream":
                stream = numbers.sync()
                assert next(stream) == 0
                sys.exit(3)
            case "run":
                from atasks.pipeline import map  # late: so the interpreter takes its imports away early

                stream = iter(range(1000) | map(str))
                assert next(stream) == "0"
                sys.exit(3)
            case "blocked":
                threading.Thread(target=block.sync, daemon=True).start()
                time.sleep(0.5)
                sys.exit(3)

    if __name__ == "__main__":
        main(*sys.argv[1:])
    """

LEFT_OPEN = """
    import asyncio, gc, sys, time
    from contextlib import AsyncExitStack, asynccontextmanager
    import atasks
    from atasks import atask

    @atask
    async def add(a, b):
        return a + b

    @atask
    async def forever():
        await asyncio.Event().wait()

    @atask
    async def numbers():
        for number in range(1000):
            yield number

    @asynccontextmanager
    async def lifespan():
        try:
            yield
        finally:
            await asyncio.sleep(0.2)

    def serve(url):
        if url.startswith("l"):
            return atasks.connect(url)
        return atasks.serve(url, grace=1, lifespan=lifespan)

    async def main(url, how):
        global kept, nested, task, stream
        match how:
            case "dropped":
                await serve(url).__aenter__()
            case "local":
                block = serve(url)
                await block.__aenter__()
            case "global":
                kept = serve(url)
                await kept.__aenter__()
            case "nested":
                nested = AsyncExitStack()
                await nested.enter_async_context(serve(url))
                await nested.enter_async_context(atasks.connect(url))
                await nested.enter_async_context(atasks.connect("loopback:", namespace="other"))
        gc.collect()
        assert await add(1, 2) == 3
        task = asyncio.create_task(forever())
        stream = numbers()
        assert await anext(stream) == 0

    if __name__ == "__main__":
        asyncio.run(main(*sys.argv[1:]))
        sys.exit(3)
    """

PIPELINE = """
    import os, sys, time
    from atasks.pipeline import map

    def note(directory):
        open(f"{directory}/child.{os.getpid()}", "w").close()

    def quick(item):
        note(item[0])
        return item[1]

    def busy(item):
        note(item[0])
        while True:
            time.sleep(0.01)

    def stubborn(item):
        note(item[0])
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass

    def main(directory, how, what):
        global iterator
        function = {"quick": quick, "busy": busy, "stubborn": stubborn}[what]
        run = ((directory, n) for n in range(1000)) | map(function, multiprocess=True, workers=4)
        iterator = iter(run)
        if how == "break":
            for _ in iterator:
                sys.exit(3)
        for _ in iterator:
            time.sleep(0.05)

    if __name__ == "__main__":
        main(*sys.argv[1:])
    """


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Path]:
    """The directory where children leave their marks; they are ended with the test."""
    yield tmp_path
    for child in living(tmp_path):
        os.kill(child, signal.SIGKILL)


def living(directory: Path) -> list[int]:
    """The children that live."""
    pids = [int(mark.suffix[1:]) for mark in directory.glob("child.*")]
    return [pid for pid in pids if lives(pid)]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def start(tmp_path: Path, text: str, *arguments: str, warnings: str = "error") -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, "-W", warnings, script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(atasks.__file__).parent.parent), "PYTHONASYNCIODEBUG": ""},
        start_new_session=True,
    )


def end(program: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the program, and return its exit code and what it wrote, but for what a busy machine has it say. It
    is ended if it does not end."""
    try:
        output, _ = program.communicate(timeout=SOON)
    finally:
        program.kill()
    return program.returncode, without_warnings(output)


def gone(children: Path, began: float) -> None:
    """Hold a program that was told to end, or started, then, to having waited for its children. On a machine so
    busy that all of its patience has passed meanwhile, they end a moment after it."""
    patient = time.monotonic() - began < EXIT_SECONDS
    wait_until(lambda: not living(children), "its processes are gone with the program", 0 if patient else 30)


@pytest.mark.parametrize("url", ["loopback:", "local:?workers=1", "amqp:"])
@pytest.mark.parametrize("how", ["end", "exit", "raise", "thread", "twice"])
def test_connections_that_are_left_open(
    url: str, how: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if url == "amqp:":
        broker: Broker = request.getfixturevalue("broker")
        url = broker.url
    code, output = end(start(tmp_path, CONNECTED, url, how))
    assert code == {"end": 0, "raise": 1}.get(how, 3), output
    assert output.strip().endswith("ValueError: of the program") if how == "raise" else not output


@pytest.mark.parametrize("url", ["loopback:", "local:?workers=1", "amqp:"])
@pytest.mark.parametrize("how", ["dropped", "local", "global", "nested"])
def test_blocks_that_are_open_when_their_event_loop_ends(
    url: str, how: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if url == "amqp:":
        broker: Broker = request.getfixturevalue("broker")
        url = f"{broker.url}?prefix=test-{uuid.uuid4().hex}"
    code, output = end(start(tmp_path, LEFT_OPEN, url, how, warnings="default"))
    assert code == 3, output
    said = {line for line in output.splitlines() if "was not left before its loop ended: use `async" in line}
    blocks = 1 if how != "nested" or url == "loopback:" else 2 if url.startswith("local") else 3
    assert len(said) == blocks, output
    assert 'atasks/connection.py"' not in output  # the client library may have tracebacks of its own tasks
    assert "asynchronous generator" not in output


@pytest.mark.parametrize("how", ["stream", "run", "blocked"])
def test_what_goes_on_at_the_end(how: str, tmp_path: Path) -> None:
    code, output = end(start(tmp_path, CONNECTED, "loopback:", how))
    assert code == 3, output
    assert how == "blocked" or output == ""


@pytest.mark.parametrize("what", ["quick", "busy", "stubborn"])
def test_a_ctrl_c_ends_the_processes_of_a_run(what: str, children: Path) -> None:
    program = start(children, PIPELINE, str(children), "run", what)
    wait_until(lambda: len(living(children)) == 4 or program.poll() is not None, "four processes work")
    began = time.monotonic()
    os.killpg(program.pid, signal.SIGINT)
    code, output = end(program)
    assert code == -signal.SIGINT, output
    gone(children, began)


def test_leaving_a_run_at_the_end_ends_its_processes(children: Path) -> None:
    began = time.monotonic()
    code, output = end(start(children, PIPELINE, str(children), "break", "quick"))
    assert code == 3, output
    gone(children, began)


@pytest.mark.parametrize("what", ["busy", "stubborn"])
def test_the_processes_of_a_run_end_with_a_killed_program(what: str, children: Path) -> None:
    program = start(children, PIPELINE, str(children), "run", what)
    wait_until(lambda: len(living(children)) == 4 or program.poll() is not None, "four processes work")
    program.kill()
    program.communicate(timeout=SOON)
    wait_until(lambda: not living(children), "its processes are gone")
