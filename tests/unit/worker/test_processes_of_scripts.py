"""Blocking functions of scripts in processes, and what becomes of the processes when the script dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from atasks.testing import PATIENCE
from tests.busy import without_warnings
from tests.unit.conftest import ROOT

SCRIPT = """
    import os
    from dataclasses import dataclass
    import atasks

    @dataclass
    class Point:
        x: int

    class Refused(Exception):
        pass

    print("imported" if __name__ != "__main__" else "started", flush=True)

    @atasks.atask(executor="process")
    def move(point: Point) -> Point:
        if point.x < 0:
            raise Refused(point)
        return Point(point.x + 1)

    if __name__ == "__main__":
        with atasks.connect_sync("loopback:"):
            assert move.sync(Point(1)) == Point(2)
            try:
                move.sync(Point(-1))
            except Refused as error:
                print(error.args == (Point(-1),))
"""


@pytest.mark.parametrize("name", ["script.py", "my-script.py", os.fsdecode(b"\xff/script.py")], ids=ascii)
def test_a_script_and_its_processes_have_the_same_classes(script: Callable[..., str], name: str) -> None:
    assert script(SCRIPT, name=name).split() == ["started", "imported", "True"]


def test_a_process_imports_no_event_loop_for_functions_that_need_none(script: Callable[..., str]) -> None:
    text = """
        import sys
        import atasks

        class Refused(Exception):
            pass

        @atasks.atask(executor="process")
        def imported(names: set[str], refuse: bool) -> set[str]:
            if refuse:
                raise Refused
            return names & set(sys.modules)

        if __name__ == "__main__":
            with atasks.connect_sync("loopback:"):
                for refuse in (False, True, False):
                    try:
                        print(imported.sync({"pickle", "asyncio", "ssl", "atasks.router"}, refuse))
                    except Refused:
                        print("refused")
    """
    assert script(text).split() == ["{'pickle'}", "refused", "{'pickle'}"]


def test_functions_of_a_prompt_travel_by_value(tmp_path: Path) -> None:
    text = """
        import os, atasks
        factor = 3
        def twice(n): return 2 * n
        @atasks.atask(executor="process")
        def compute(n): return twice(n) * factor, os.getpid()
        with atasks.connect_sync("loopback:"):
            value, pid = compute.sync(5)
            print(value, pid != os.getpid())
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(text)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONASYNCIODEBUG": "",
        },  # else stderr tells of a busy machine
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, without_warnings(done.stderr)) == ("30 True\n", "")


def test_a_module_that_fails_in_the_process_is_named(script: Callable[..., str]) -> None:
    text = """
        import atasks, logging

        if __name__ != "__main__":
            raise OSError("no licence here")

        logging.getLogger("atasks.call").setLevel(logging.ERROR)

        @atasks.atask(executor="process")
        def compute() -> None: ...

        with atasks.connect_sync("loopback:"):
            try:
                compute.sync()
            except atasks.CallError as error:
                print(error)
    """
    said = script(text)
    assert said == "a process of the worker cannot serve script.compute (OSError: no licence here)"


@pytest.mark.parametrize("busy", [False, True])
def test_processes_end_when_their_worker_is_killed(busy: bool, tmp_path: Path) -> None:
    text = """
        import os, sys, time
        import atasks

        @atasks.atask(executor="process")
        def pid() -> int:
            return os.getpid()

        @atasks.atask(executor="process")
        def spin() -> None:
            print(os.getpid(), flush=True)
            while True:
                time.sleep(0.01)

        if __name__ == "__main__":
            with atasks.connect_sync("loopback:"):
                if sys.argv[1] == "True":
                    spin.sync()
                print(pid.sync(), flush=True)
                time.sleep(1000)
    """
    (tmp_path / "worker.py").write_text(dedent(text))
    command = [sys.executable, "worker.py", str(busy)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        process = psutil.Process(int(worker.stdout.readline()))
        worker.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([process], timeout=PATIENCE)[1] == []


def test_a_process_whose_worker_is_killed_before_it_is_ready_says_nothing(tmp_path: Path) -> None:
    script = """
        import os
        import atasks

        @atasks.atask(executor="process")
        def work() -> None: ...

        if __name__ == "__main__":
            os.environ["WORKER"] = str(os.getpid())
            with atasks.connect_sync("loopback:", process_setup="setup:kill"):
                work.sync()
    """
    setup = """
        import os, signal, time

        def kill():
            worker, parent = int(os.environ["WORKER"]), os.getppid()
            os.kill(worker, signal.SIGKILL)
            while os.getppid() == parent:  # the worker, or its fork server
                time.sleep(0.01)
    """
    for name, text in {"script": script, "setup": setup}.items():
        (tmp_path / f"{name}.py").write_text(dedent(text))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONASYNCIODEBUG": ""}
    # The pipe ends with the last process that has it.
    killed = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (without_warnings(killed.stderr), killed.returncode) == ("", -signal.SIGKILL)
