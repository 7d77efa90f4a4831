"""`process_setup`: a function that each process calls before it imports modules of atasks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

import atasks
from atasks import process_setup
from atasks.errors import LoadError
from tests.busy import without_warnings
from tests.unit.conftest import ROOT

BOOT = """
    ready = False

    def prepare():
        global ready
        ready = True

    def fail():
        raise ValueError("no settings")

    number = 7
"""
WORK = """
    import boot
    import atasks

    if not boot.ready:
        raise RuntimeError("imported before it was prepared")

    @atasks.atask
    async def here():
        return boot.ready

    @atasks.atask(executor="process")
    def apart():
        return boot.ready

    async def aiomain():
        print(await here(), await apart())
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Runs the text as a program beside the modules `boot` and `work`, and returns what it wrote, but for
    what a busy machine has it say."""
    (tmp_path / "boot.py").write_text(dedent(BOOT))
    (tmp_path / "work.py").write_text(dedent(WORK))

    def run(text: str, *arguments: str) -> str:
        (tmp_path / "program.py").write_text(dedent(text))
        command = (
            [sys.executable, "program.py", *arguments] if text else [sys.executable, "-m", "atasks", *arguments]
        )
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
        )
        return done.stdout + without_warnings(done.stderr)

    return run


CALLS = """
    import asyncio, boot, sys, atasks

    async def main():
        async with {block}:
            boot.ready = True  # the processes have one of their own
            import work
            print({calls})

    if __name__ == "__main__":
        asyncio.run(main())
"""


def test_worker_processes_and_their_own_are_prepared(program: Callable[[str], str]) -> None:
    block = "atasks.local(1, modules=['work'], process_setup='boot:prepare')"
    assert program(CALLS.format(block=block, calls="await work.here(), await work.apart()")) == "True True\n"


def test_processes_of_a_worker_in_the_program_are_prepared(program: Callable[[str], str]) -> None:
    block = "atasks.connect('loopback:', process_setup='boot:prepare')"
    assert program(CALLS.format(block=block, calls="await work.apart()")) == "True\n"


def test_the_command_is_prepared_and_the_processes_that_it_starts(program: Callable[..., str]) -> None:
    for more in ((), ("--workers", "1")):
        assert program("", "run", "work.py", "--process-setup", "boot:prepare", *more) == "True True\n"


def test_children_of_pipelines_are_prepared(program: Callable[[str], str]) -> None:
    text = """
        import asyncio, boot, atasks
        from atasks import process_setup
        from atasks.pipeline import map

        if __name__ == "__main__":
            process_setup.run("boot:prepare")
            import work, functions

            async def main():
                print(await ([1, 2] | map(functions.told, multiprocess=True)))

            asyncio.run(main())
    """
    Path(program.__closure__[0].cell_contents, "functions.py").write_text(  # type: ignore[index, union-attr]
        "import work\ndef told(n): return n\n"
    )
    assert program(text) == "[1, 2]\n"


def test_a_setup_that_fails_says_so(program: Callable[[str], str]) -> None:
    words = "process_setup='boot:fail' has failed (ValueError: no settings)"
    for block, call in (("local(1, modules=['work'], ", "here"), ("connect('loopback:', ", "apart")):
        block = f"atasks.{block}process_setup='boot:fail')"
        assert words in program(CALLS.format(block=block, calls=f"await work.{call}()"))


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (f"{__name__}:missing", "has no function missing"),
        (f"{__name__}:BOOT", "has no function BOOT"),
        ("nowhere:prepare", "cannot import nowhere"),
    ],
)
def test_a_setup_that_is_not_there_says_so(setup: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        process_setup.run(setup)


@pytest.mark.parametrize("setup", ["boot", "boot:", ":prepare", "boot prepare", "boot:pre pare", 5])
async def test_what_names_no_function_is_refused(setup: object) -> None:
    for url in ("loopback:", "local:"):
        with pytest.raises((TypeError, ValueError), match="process_setup"):
            async with atasks.connect(url, process_setup=setup):  # type: ignore[typeddict-item]
                pass
