"""Worker processes log as the program that started them does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import atasks
from tests.busy import without_warnings

pytestmark = pytest.mark.timeout(120)

SCRIPT = """
    import asyncio, logging, sys
    import atasks
    from atasks import atask
    from atasks.pipeline import map

    log = logging.getLogger("app")
    OWN

    def tell(where):
        for level in ("debug", "info", "warning"):
            getattr(log, level)("%s in %s", level, where)
        logging.getLogger("quiet").warning("quiet in %s", where)
        return where

    @atask
    async def on_the_loop(where):
        return tell(where)

    @atask(executor="thread")
    def in_a_thread(where):
        return tell(where)

    @atask(executor="process")
    def in_a_process(where):
        return tell(where)

    async def aiomain():
        await on_the_loop("loop")
        await in_a_thread("thread")
        await in_a_process("process")

    async def main(level):
        if level != "none":
            logging.basicConfig(level=level, format="parent: %(message)s")
            logging.getLogger("quiet").setLevel(logging.ERROR)
        async with atasks.local(workers=1):
            await aiomain()
        async for _ in ["stage"] | map(tell, multiprocess=True):
            pass

    if __name__ == "__main__":
        asyncio.run(main(sys.argv[1]))
    """


def run(tmp_path: Path, *arguments: str, own: str = "") -> list[str]:
    """Run the script, and return the lines that it wrote to stderr, but for what a busy machine has it say."""
    script = tmp_path / "logged.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("OWN", own))
    words = [str(script) if word == "SCRIPT" else word for word in arguments]
    environ = {**os.environ, "PYTHONPATH": str(Path(atasks.__file__).parent.parent)}
    environ.pop("PYTHONASYNCIODEBUG", None)
    done = subprocess.run(
        [sys.executable, *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return without_warnings(done.stderr).splitlines()


def told(lines: list[str]) -> dict[str, list[str]]:
    """The messages that the functions logged, by where they ran; each line names the process."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := re.fullmatch(r"\S+ \S+ [A-Z]+ (.+) \(pid \d+\) (app|quiet): (\w+) in (\w+)", line):
            name, _, level, where = match.groups()
            expected = {"process": "process of a worker", "stage": "process of stage tell"}.get(where, "worker 1")
            assert name.replace("'", "") == expected, line
            found.setdefault(where, []).append(level)
    return found


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("DEBUG", ["debug", "info", "warning"]),
        ("INFO", ["info", "warning"]),
        ("ERROR", []),
        ("none", ["warning", "quiet"]),
    ],
)
def test_at_the_levels_of_the_program(tmp_path: Path, level: str, expected: list[str]) -> None:
    found = told(run(tmp_path, "SCRIPT", level))
    assert found == (dict.fromkeys(("loop", "thread", "process", "stage"), expected) if expected else {})


@pytest.mark.parametrize(
    ("verbose", "expected"), [("-v", ["info", "warning"]), ("-vv", ["debug", "info", "warning"])]
)
def test_as_the_command_line_does(tmp_path: Path, verbose: str, expected: list[str]) -> None:
    lines = run(tmp_path, "-m", "atasks", "run", "SCRIPT", "--workers", "1", verbose)
    found = told(lines)
    shown = {where: [level for level in levels if level != "quiet"] for where, levels in found.items()}
    assert shown == dict.fromkeys(("loop", "thread", "process"), expected)


def test_as_its_modules_have_said(tmp_path: Path) -> None:
    own = 'logging.basicConfig(level="INFO", format="own: %(message)s")'
    lines = run(tmp_path, "SCRIPT", "DEBUG", own=own)
    assert told(lines) == {"stage": ["info", "warning"]}, "functions of a script travel to it without their module"
    assert [line for line in lines if line.startswith("own: info in")] == [
        f"own: info in {where}" for where in ("loop", "thread", "process")
    ]
