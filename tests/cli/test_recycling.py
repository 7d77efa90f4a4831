"""`--max-calls-per-worker` and `--max-memory-per-worker`, over a real broker."""

from __future__ import annotations

import click
import psutil
import pytest

from atasks_cli.size import Size, shown_size
from tests.cli.app import App, workers
from tests.cli.command import PATIENCE
from tests.waiting import wait_until

GROWING = """
    import os, tasks
    from atasks import atask

    held = []

    @atask(namespace="NAMESPACE")
    async def grow(size):
        held.append(os.urandom(size))
"""


def test_worker_is_replaced_after_its_calls_and_drains_while_its_replacement_serves(app: App) -> None:
    supervisor = app.supervise("--workers", "1", "--max-calls-per-worker", "1", "-v")
    (old,) = workers(supervisor)
    client = app.call("gated")
    supervisor.wait_for("running")
    line = supervisor.wait_for("is to be replaced")
    what = f"worker 1 (pid {old.pid}) is to be replaced: it has started 1 calls (--max-calls-per-worker 1)\n"
    assert line.endswith(what)
    assert app.pids(other_than=[old.pid])  # the replacement serves
    assert old.is_running()  # and the old one has not ended
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert psutil.wait_procs([old], PATIENCE)[1] == []
    supervisor.wait_for(f"worker 1 (pid {old.pid}) exited with code 0, having been told to end")
    app.end(supervisor)


def test_worker_that_takes_too_much_memory_is_replaced(app: App) -> None:
    app.shell.write("growing.py", GROWING.replace("NAMESPACE", app.namespace))
    app.shell.write("client.py", "import growing\nasync def aiomain(task):\n    await growing.grow(200 << 20)\n")
    options = ("--workers", "2", "--max-memory-per-worker", "200M", "-v")
    supervisor = app.supervise(*options, target="growing.py")
    before = {process.pid for process in workers(supervisor)}
    client = app.call("grow")
    assert "M (--max-memory-per-worker 200M)" in supervisor.wait_for("is to be replaced: it takes 2")
    assert client.finish().code == 0
    wait_until(lambda: len(before - {process.pid for process in workers(supervisor)}) == 1)
    wait_until(lambda: len(workers(supervisor)) == 2)
    assert "takes its place" not in app.end(supervisor)


def test_memory_that_is_too_small_for_any_worker(app: App) -> None:
    done = app.start("--workers", "2", "--max-memory-per-worker", "1M").finish()
    assert done.code == 2
    line = done.line()
    assert line.startswith("--max-memory-per-worker 1M: a worker takes ")
    assert line.endswith("M before its first call; allow more")


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("1", 1, "1"),
        ("65536", 65536, "64K"),
        ("1.5k", 1536, "1.5K"),
        ("500M", 500 * 2**20, "500M"),
        ("2G", 2**31, "2G"),
        ("1023G", 1023 * 2**30, "1023G"),
    ],
)
def test_sizes(text: str, size: int, shown: str) -> None:
    assert Size().convert(text, None, None) == size
    assert shown_size(size) == shown


@pytest.mark.parametrize("text", ["0", "", "M", "-1", "nan", "inf", "1T", "9" * 400, f"{'9' * 400}G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.UsageError, match="is no size: give bytes"):
        Size().convert(text, None, None)
