"""`atasks.local` in plain scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import atasks
from tests.busy import without_warnings
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.timeout(180)

SCRIPT = """
    import asyncio, os, sys, time
    import atasks
    from atasks import atask

    class Box:
        def __init__(self, value):
            self.value = value

    @atask
    async def boxed(value: int) -> Box:
        return Box((value, os.getpid()))

    @atask
    async def stay(blocked: bool) -> None:
        os.write(1, b"%d\\n" % os.getpid())
        while blocked:
            time.sleep(0.01)
        await asyncio.Event().wait()

    async def main(*words):
        async with atasks.local(workers=2, concurrency=1):
            match words:
                case ["boxes"]:
                    boxes = await asyncio.gather(*(boxed(n) for n in range(20)))
                    assert all(type(box) is Box for box in boxes)
                    assert {box.value[1] for box in boxes} - {os.getpid()}
                    print(sum(box.value[0] for box in boxes))
                case ["stay"]:
                    await asyncio.gather(stay(True), stay(False))
    """
GUARDED = (
    SCRIPT
    + """
    if __name__ == "__main__":
        asyncio.run(main(*sys.argv[1:]))
    """
)
LEFT_OPEN = (
    SCRIPT
    + """
    async def leave():
        if sys.argv[1] == "local":
            connection = atasks.local(workers=2)
        else:
            connection = atasks.serve(f"unix://{__file__}.sock")
        await connection.__aenter__()
        print((await boxed(3)).value[0])
        sys.exit(9)

    if __name__ == "__main__":
        asyncio.run(leave())
    """
)
UNGUARDED = (
    SCRIPT
    + """
    asyncio.run(main("boxes"))
    """
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Runs a script; what still runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str, name: str = "my-script.py") -> subprocess.Popen[str]:
        file = tmp_path / name
        file.write_text(textwrap.dedent(script))
        environ = {**os.environ, "PYTHONPATH": str(Path(atasks.__file__).parent.parent), "PYTHONWARNINGS": "error"}
        environ.pop("PYTHONASYNCIODEBUG", None)  # with it, stderr tells of a busy machine
        process = subprocess.Popen(
            [sys.executable, str(file), *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def written(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what the script wrote to stdout and to stderr, but for what a busy machine has it say."""
    out, err = process.communicate(timeout=60)
    return out, without_warnings(err)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def stays(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes, each with a call, one of which blocks its event loop."""
    assert process.stdout is not None
    pids = {int(process.stdout.readline()) for _ in range(2)}
    found = children(process)
    assert pids == {child.pid for child in found}
    return found


def test_a_script_whose_classes_are_the_same_on_both_sides(start: Callable[..., subprocess.Popen[str]]) -> None:
    out, err = written(start(GUARDED, "boxes"))
    assert (out, err) == (f"{sum(range(20))}\n", "")


def test_a_script_without_a_guard_is_told_so(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(UNGUARDED)
    _, err = written(process)
    assert process.returncode == 1
    assert 'put what starts the program under if __name__ == "__main__":' in err.splitlines()[-1]
    assert "WorkersFailed" in err.splitlines()[-1]


EXECUTOR = """
    import asyncio, os, sys
    import atasks
    from atasks import atask

    open(f"{__file__}.{os.getpid()}", "w").close()

    @atask(executor="process")
    def crunch(number: int) -> int:
        return number * number

    async def main():
        async with atasks.serve("loopback:"):
            return await asyncio.gather(*(crunch(n) for n in range(4)))
    """


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_with_functions_in_processes_and_no_guard(
    start: Callable[..., subprocess.Popen[str]], guarded: bool, tmp_path: Path
) -> None:
    guard = """
    if __name__ == "__main__":
        print(asyncio.run(main()))
    """
    process = start(EXECUTOR + (guard if guarded else "\n    print(asyncio.run(main()))\n"))
    out, err = written(process)
    if guarded:
        assert (out, err) == ("[0, 1, 4, 9]\n", "")
    else:
        assert process.returncode == 1
        assert 'put what starts the program under if __name__ == "__main__":' in err.splitlines()[-1]
        begun = list(tmp_path.glob("my-script.py.*"))
        assert len(begun) <= 1 + (os.cpu_count() or 1), "its processes have started no others"


def test_a_script_that_is_killed_leaves_no_process(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(GUARDED, "stay")
    workers = stays(process)
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(worker) for worker in workers), "no worker process is left", 2 * DEADLINE)


@pytest.mark.parametrize("kind", ["local", "server"])
def test_a_script_that_leaves_its_connection_open_ends_with_its_own_code(
    start: Callable[..., subprocess.Popen[str]], kind: str
) -> None:
    process = start(LEFT_OPEN, kind)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "3\n")


def test_a_script_that_is_interrupted_ends_its_processes(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(GUARDED, "stay")
    workers = stays(process)
    for each in (process.pid, *(worker.pid for worker in workers)):  # as a terminal does
        os.kill(each, signal.SIGINT)
    _, err = written(process)
    assert not any(alive(worker) for worker in workers)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert err.count("Traceback") == 2, "one is of the interrupt, and one of the await that it cancelled"


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_prompt_is_told_that_it_cannot(tmp_path: Path) -> None:
    code = """
import asyncio, atasks
@atasks.atask
async def one(): return 1
async def main():
    async with atasks.local(workers=1):
        pass
asyncio.run(main())
"""
    env = {**os.environ, "PYTHONPATH": str(Path(atasks.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert "put the atasks into a module" in done.stderr.splitlines()[-1]
