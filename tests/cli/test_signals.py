"""Ctrl-C and SIGTERM in loopback and client mode."""

from __future__ import annotations

from signal import SIGINT, SIGTERM, Signals

import pytest

from tests.cli.command import Command
from tests.cli.shell import Shell

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
