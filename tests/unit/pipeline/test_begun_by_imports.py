"""Runs with processes that a module begins while it is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atasks.modules import UNGUARDED

BODIES = {
    "its own function": """
        def double(x): return 2 * x
        print(list([1, 2] | pl.map(double, multiprocess=True)))
    """,
    "its own function in an event loop": """
        import asyncio
        def double(x): return 2 * x
        async def main(): return [x async for x in [1, 2] | pl.map(double, multiprocess=True)]
        print(asyncio.run(main()))
    """,
    "items of its own class": """
        class Box: pass
        print(list([Box()] | pl.map(repr, multiprocess=True)))
    """,
    "the start of a process": """
        def prepare(): return {}
        print(list([1, 2] | pl.map(abs, multiprocess=True, on_start=prepare)))
    """,
}
TRY = """
    try:
        import {module}
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""


def write(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = body.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    path.write_text("\n".join(["import atasks.pipeline as pl", *(line[indent:] for line in lines)]) + "\n")


@pytest.mark.parametrize("body", BODIES)
def test_what_a_process_would_have_to_import(body: str, script: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "jobs.py", BODIES[body])
    assert script(TRY.format(module="jobs")) == f"PipelineError: {UNGUARDED}"


def test_a_module_of_the_package(script: Callable[..., str], tmp_path: Path) -> None:
    write(
        tmp_path / "jobs/__init__.py",
        """
        from jobs.double import double
        print(list([1, 2] | pl.map(double, multiprocess=True)))
        """,
    )
    (tmp_path / "jobs/double.py").write_text("def double(x): return 2 * x\n")
    assert script(TRY.format(module="jobs")) == f"PipelineError: {UNGUARDED}"


def test_what_needs_nothing_of_the_module_runs(script: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "jobs.py", "print(list([1.5, -2.5] | pl.map(abs, multiprocess=True)))")
    assert script(TRY.format(module="jobs")) == "[1.5, 2.5]"


def test_a_module_that_another_thread_imports_meanwhile(script: Callable[..., str], tmp_path: Path) -> None:
    """The other thread waits for nothing of ours, so that it is waited for."""
    write(
        tmp_path / "jobs.py",
        """
        import threading, time
        class Box: pass
        import begun
        begun.begun.set()
        time.sleep(1)
        """,
    )
    (tmp_path / "begun.py").write_text("import threading\nbegun = threading.Event()\n")
    text = """
        import sys, threading
        import atasks.pipeline as pl
        import begun

        if __name__ == "__main__":
            thread = threading.Thread(target=lambda: __import__("jobs"))
            thread.start()
            begun.begun.wait()
            print(list([sys.modules["jobs"].Box()] | pl.map(type, multiprocess=True)))
            thread.join()
    """
    assert script(text) == "[<class 'jobs.Box'>]"


def test_what_cannot_be_unpickled_in_the_process_is_its_own_error(script: Callable[..., str]) -> None:
    text = """
        import os
        import atasks.pipeline as pl

        def fail(pid):
            if pid != os.getpid():
                raise LookupError("not here")

        class Box:
            def __reduce__(self): return fail, (os.getpid(),)

        if __name__ == "__main__":
            try:
                list([Box()] | pl.map(repr, multiprocess=True))
            except LookupError as error:
                print(error)
    """
    assert script(text) == "not here"
