"""The process of a stage leaves nothing undone that an interpreter does at its end, though it does less."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atasks.fork_server import starting
from atasks.pipeline import bind, map
from tests.unit.pipeline.noted import of_module

MODULE = """
import atexit, pathlib, threading

folder = pathlib.Path(__file__).parent
left_open = (folder / "left_open").open("w")

class Last:
    def __del__(self):
        (folder / "finalized").touch()

last = Last()

def linger(name):
    threading.Event().wait(0.3)
    (folder / name).touch()
    atexit.register((folder / "registered_late").touch)

def work(x):
    threading.Thread(target=linger, args=["thread"]).start()
    atexit.register((folder / "registered").touch)
    left_open.write("written")
    print("said", end="")
    return x
"""


@pytest.mark.parametrize("how", ["forked", "interpreter"])
async def test_all_that_is_left_to_do_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    if how == "interpreter":
        monkeypatch.setattr(starting, "ask", lambda *args, **options: None)
    (tmp_path / "left_to_do.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert await ([1] | map(of_module, bind=bind("left_to_do"), multiprocess=True)) == [1]
    for name in ("thread", "registered", "registered_late", "finalized"):
        assert (tmp_path / name).exists(), name
    assert (tmp_path / "left_open").read_text() == "written"
    assert capfd.readouterr().out == "said"


LATE = """
import os, sys
from atasks.quick_end import end

class Late:
    def __del__(self, write=os.write):
        write(1, b"late")

sys.late = Late()  # an interpreter takes this module apart at the very end
"""


@pytest.mark.parametrize(
    ("then", "printed"),
    [
        ("", b"late"),
        ("end({*sys.modules})", b""),
        ("import json; end({*sys.modules} - {'json'})", b""),
        ("import msgspec; end({*sys.modules} - {'msgspec', 'msgspec._core'})", b"late"),
        ("import ctypes; end({*sys.modules} - {'ctypes', '_ctypes'})", b"late"),
    ],
)
def test_an_end_is_quick_where_nothing_but_python_has_a_part_in_it(then: str, printed: bytes) -> None:
    done = subprocess.run([sys.executable, "-c", LATE + then], capture_output=True, check=True, timeout=60)
    assert done.stdout == printed
    assert done.stderr == b""


HELD = """
import os

class Last:
    def __del__(self, write=os.write):
        write(1, b"last")

last = Last()
"""


THREAD = """
import signal, threading, time
running = threading.Event()
tick = time.perf_counter

def watch():
    while True:
        tick()
        running.set()

threading.Thread(target=watch, daemon=True).start()
running.wait()
signal.signal(signal.SIGUSR1, lambda *args: None)
"""


@pytest.mark.parametrize(
    ("holds", "printed"),
    [
        ("import signal; signal.signal(signal.SIGUSR1, lambda *args: None)", b"last"),
        ("import sys; sys.excepthook = lambda *args: None", b"last"),
        ("import logging; logging.getLogger('held').addFilter(lambda record: True)", b"last"),
        (THREAD, b""),  # the thread may use it
    ],
)
def test_modules_are_finalized_that_a_module_of_python_holds(tmp_path: Path, holds: str, printed: bytes) -> None:
    """Something of Python's has a function of the module, and so all that the module has."""
    (tmp_path / "held.py").write_text(HELD + holds)
    program = (
        "import logging, signal, sys, threading, time; from atasks.quick_end import end; own = {*sys.modules}; "
        f"sys.path.append({str(tmp_path)!r}); import held; "
    )
    for then in ("", "end(own)"):
        done = subprocess.run([sys.executable, "-c", program + then], capture_output=True, check=True, timeout=60)
        assert (done.stdout, done.stderr) == (printed, b"")


def test_a_file_whose_writing_raises_anything_has_the_rest_done() -> None:
    raw = "type('Raw', (io.RawIOBase,), {'writable': lambda self: True, 'write': lambda self, data: 1 // 0})()"
    program = (
        LATE
        + f"import io; file = io.BufferedWriter({raw}); file.write(b'x'); print('said'); end({{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"said\n", b"")


def test_output_that_cannot_be_written_is_told_of() -> None:
    program = LATE + "print('lost'); end({*sys.modules})"
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, timeout=60, env=environ
        )
    assert b"No space left" in done.stderr
    assert done.returncode == 120
