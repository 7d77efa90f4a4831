"""Programs that another program runs as `__main__`: profilers, debuggers, `runpy`, pytest's importlib mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import atasks

pytestmark = pytest.mark.timeout(120)

APP = dedent(
    """
    import asyncio
    import atasks, atasks.pipeline as pl
    from atasks import NotSupported, atask

    class Odd(Exception):
        pass

    class Box:
        def __init__(self, n): self.n = n

    @atask
    async def add(a, b): return Box(a + b)

    @atask
    async def fail(): raise Odd("odd")

    @atask(executor="process")
    def square(box): return Box(box.n * box.n)

    def double(box): return Box(2 * box.n)

    async def calls():
        boxes = [await add(1, 2), await square(Box(3))]
        try:
            await fail()
        except Odd:
            return [type(box) is Box and box.n for box in boxes]

    async def main():
        async with atasks.connect("loopback:"):
            print("loopback:", await calls())
        try:
            async with atasks.local(workers=1):
                print("local:", await calls())
        except NotSupported as error:
            print("local:", error)

    if __name__ == "__main__":
        asyncio.run(asyncio.wait_for(main(), 60))
        boxes = list([Box(1), Box(2)] | pl.map(double, multiprocess=True))
        print("pipeline:", [type(box) is Box and box.n for box in boxes])
    """
)
HERE = ["loopback: [3, 9]", "pipeline: [2, 4]"]
WORKS = [HERE[0], "local: [3, 9]", HERE[1]]
RUN_PATH = "import runpy\nif __name__ == '__main__':\n    runpy.run_path('app.py', run_name='__main__')\n"
RUN_MODULE = "import runpy\nif __name__ == '__main__':\n    runpy.run_module('app', run_name='__main__')\n"
RUNNERS = {
    "cProfile": (["-m", "cProfile", "-o", "out", "app.py"], WORKS),
    "cProfile of a module": (["-m", "cProfile", "-o", "out", "-m", "app"], WORKS),
    "trace": (["-m", "trace", "-t", "--ignore-dir", os.pathsep.join(sys.path[1:]), "app.py"], WORKS),
    "trace counts": (["-m", "trace", "--count", "-C", "counts", "app.py"], WORKS),
    "pdb": (["-m", "pdb", "-c", "continue", "app.py"], WORKS),
    "runpy": (["-m", "runpy", "app"], WORKS),
    "run_path": (["path.py"], WORKS),
    "run_module": (["module.py"], WORKS),
}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(Path(atasks.__file__).parent.parent)}
    environ.pop("PYTHONASYNCIODEBUG", None)
    environ.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize("runner", RUNNERS)
def test_scripts_under_runners(runner: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "path.py").write_text(RUN_PATH)
    (tmp_path / "module.py").write_text(RUN_MODULE)
    arguments, said = RUNNERS[runner]
    done = python(*arguments, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("loopback:", "local:", "pipeline:"))]
    assert lines == said, done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["importlib", "prepend"])
def test_modules_of_pytest(mode: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    test = "\ndef test_it():\n    asyncio.run(asyncio.wait_for(main(), 60))\n"
    items = "    assert [box.n for box in [Box(1)] | pl.map(double, multiprocess=True)] == [2]\n"
    (tmp_path / "tests/test_app.py").write_text(APP + test + items)
    done = python("-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("loopback:", "local:"))]
    assert lines == WORKS[:2], done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_program_that_executes_another_one(tmp_path: Path) -> None:
    """Both are `__main__`, and the first one keeps the name if it has atasks of its own."""
    (tmp_path / "app.py").write_text(APP)
    first = "from atasks import atask\n@atask\nasync def one(): return 1\n"
    (tmp_path / "first.py").write_text(first + RUN_MODULE)
    done = python("first.py", cwd=tmp_path)
    assert "put the atasks into a module" in done.stdout.splitlines()[1], done.stdout + done.stderr
