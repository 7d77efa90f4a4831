"""Ctrl-C and SIGTERM in loopback and client mode."""

from __future__ import annotations

import textwrap
from signal import SIGINT, SIGTERM, Signals

import pytest

from tests.cli.command import Command
from tests.cli.shell import Shell
from tests.waiting import wait_until

WAITING = """
    import asyncio
    from atasks import atask

    @atask
    async def wait():
        print("running", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("call cancelled")

    async def aiomain():
        try:
            await wait()
        finally:
            print("aiomain cancelled")
"""


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_signal_cancels_aiomain(shell: Shell, number: Signals, code: int) -> None:
    shell.write("waiting.py", WAITING)
    command = shell.start("run", "waiting.py")
    command.wait_for("running")
    command.signal(number)
    done = command.finish()
    assert (done.code, done.err) == (code, "")
    assert sorted(done.out.splitlines()) == ["aiomain cancelled", "call cancelled", "running"]


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_second_signal_ends_an_aiomain_that_blocks(shell: Shell, number: Signals, code: int) -> None:
    shell.write(
        "blocking.py",
        """
        import signal, time

        def aiomain():
            taken = signal.getsignal(signal.SIGINT)
            def handle(number, frame):
                taken(number, frame)
                print("signal")
            signal.signal(signal.SIGINT, handle)
            signal.signal(signal.SIGTERM, handle)
            print("blocked")
            while True:
                time.sleep(0.01)  # Python does not see a signal that comes just before one long sleep begins
        """,
    )
    command = shell.start("run", "blocking.py")
    command.wait_for("blocked")
    command.signal(number)
    command.wait_for("signal")
    command.signal(number)
    done = command.finish()
    assert (done.code, done.err) == (code, "")


def test_second_signal_ends_an_aiomain_that_does_not_stop(shell: Shell) -> None:
    shell.write(
        "stubborn.py",
        """
        import asyncio

        async def aiomain():
            while True:
                print("waiting")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    print("refused")
        """,
    )
    command = shell.start("run", "stubborn.py")
    command.wait_for("waiting")
    command.signal(SIGTERM)
    command.wait_for("refused")
    command.signal(SIGINT)
    done = command.finish()
    assert (done.code, done.err) == (130, "")


def test_interrupt_while_a_module_loads(shell: Shell) -> None:
    # signal.pause() could miss a signal that comes just before it
    shell.write("slow.py", "import time\nprint('loading')\nwhile True:\n    time.sleep(0.05)")
    command = shell.start("run", "slow.py")
    command.wait_for("loading")
    command.signal(SIGINT)
    done = command.finish()
    assert (done.code, done.err) == (130, "")


def test_thread_that_is_left_running_ends_by_the_second_signal(shell: Shell) -> None:
    shell.write(
        "thread.py",
        """
        import asyncio, threading

        async def aiomain():
            loop = asyncio.get_running_loop()
            def block():
                loop.call_soon_threadsafe(print, "in thread")
                threading.Event().wait()
            try:
                await asyncio.to_thread(block)
            finally:
                print("cancelled")
        """,
    )
    command = shell.start("run", "thread.py")
    command.wait_for("in thread")
    command.signal(SIGINT)
    command.wait_for("cancelled")
    command.signal(SIGINT)
    done = command.finish()
    assert (done.code, done.err) == (130, "")


BEGINNING = """
    import sys

    class Interrupted:
        def find_spec(self, name, path=None, target=None):
            if name == "atasks_cli.main":
                raise KeyboardInterrupt

    sys.meta_path.insert(0, Interrupted())
    from atasks_cli.start import main

    sys.argv[1:] = ["ps"]
    main()
"""


def test_interrupt_while_the_command_begins_shows_no_traceback(shell: Shell) -> None:
    path = shell.write("beginning.py", BEGINNING)
    command = Command(cwd=shell.directory, program=(str(path),))
    try:
        done = command.finish()
    finally:
        command.close()
    assert (done.code, done.out, done.err) == (130, "", "")


CLOSED = """
    import os
    import sys

    os.closerange(0, 3)
    os.execv(sys.executable, [sys.executable, "-m", "atasks", *sys.argv[1:]])
"""

WITHOUT_STREAMS = """
    import pathlib
    from atasks import atask

    @atask
    async def add(a, b):
        print("nobody reads this")
        return a + b

    async def aiomain(mode):
        print("a file name \\udcff")
        pathlib.Path("found").write_text(str(await add(1, 2)))
"""


@pytest.mark.parametrize("mode", ["loopback", "server"])
def test_standard_streams_may_be_closed(shell: Shell, mode: str) -> None:
    """A daemon has none, nor has what a shell runs with `<&- >&- 2>&-`."""
    shell.write("app.py", WITHOUT_STREAMS)
    found = shell.directory / "found"
    options = ["--workers", "1", "--url", f"unix:{shell.directory}/s"] if mode == "server" else []
    closed = ("-c", textwrap.dedent(CLOSED))
    command = Command("run", "app.py", "--mode", mode, *options, cwd=shell.directory, program=closed)
    try:
        wait_until(lambda: found.exists() and found.read_text() == "3")
        if mode == "server":
            command.signal(SIGTERM)
        assert command.finish().code == 0
    finally:
        command.close()
