"""Options of a program's interpreter, and its arguments, reach the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import atasks

pytestmark = pytest.mark.timeout(120)

SCRIPT = """
    import asyncio, sys
    import atasks
    from atasks import atask
    from atasks.pipeline import map

    def options():
        here = {name: value for name, value in sys._xoptions.items() if name != "importtime"}
        return sys.flags.optimize, sys.flags.dev_mode, sorted(here), sys.warnoptions, sys.argv

    @atask
    async def in_a_worker():
        return options()

    @atask(executor="process")
    def in_an_executor():
        return options()

    async def main():
        async with atasks.local(workers=1):
            assert await in_a_worker() == options(), "worker"
            assert await in_an_executor() == options(), "executor"
        assert await ([1] | map(lambda item: options(), multiprocess=True)) == [options()], "stage"
        print(*options()[:3], [w for w in sys.warnoptions if "tests" in w or w == "error"])

    if __name__ == "__main__":
        asyncio.run(main())
    """


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "0 False [] []"),
        (["-O"], "1 False [] []"),
        (["-OO", "-X", "utf8"], "2 False ['utf8'] []"),
        (["-X", "dev", "-W", "ignore:tests are no matter"], "0 True ['dev'] ['ignore:tests are no matter']"),
        (["-W", "error", "-W", "ignore:tests"], "0 False [] ['error', 'ignore:tests']"),
    ],
)
def test_options_of_the_program(tmp_path: Path, options: list[str], expected: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = python(*options, str(script), "--an", "argument")
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(Path(atasks.__file__).parent.parent)}
    for name in ("PYTHONASYNCIODEBUG", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONDEVMODE"):
        environ.pop(name, None)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
