"""Commands that look at a fleet in which a worker says what it likes, or somebody who speaks for one."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atasks.testing import until
from atasks.transport.backends.local.hub.listener import Host
from atasks.web.fleet import FleetFeed
from atasks.web.picture import QUEUES, Picture
from tests.cli.shell import Shell
from tests.local.forging import answering
from tests.unit.tracking.test_odd_answers import call, counted, event, worker

ODD = "\x1b[31m\x1b]0;title\x07\x9b2J\u202e\0\n\r"
"""Letters that a terminal obeys, or that turn others around."""


@pytest.fixture
async def path() -> AsyncIterator[str]:
    """That of the socket of a hub."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:  # short enough for a socket
        host = await Host.open(f"{directory}/hub.sock")
        yield f"{directory}/hub.sock"
        await host.close()


def chain(below: int) -> dict[str, Any]:
    found: dict[str, Any] = {"name": ODD, "frames": [ODD], "waits_for": ODD, "children": []}
    for _ in range(below):
        found = {"name": ODD, "frames": [], "waits_for": "it", "children": [found]}
    return found


odd_call = call(task=ODD, queue=ODD, progress=ODD, holds=[ODD], root="c1", ran=0.5)["calls"][0]
ANSWERS: dict[str, Any] = {
    "ping": {"type": "pong", "host": ODD, "pid": 1, "queues": [ODD, "a b"], "version": ODD},
    "worker": worker(
        host=ODD,
        version=ODD,
        python=ODD,
        codec=ODD,
        queues=[ODD, "", "x" * 101, *map(str, range(3 * QUEUES))],
        refused={ODD: 1},
        tasks=[
            {"task": ODD, "ended": {ODD: 1}, "run": {"sum": 1.0, "buckets": [1]}},
            {"task": ODD, "run": {"sum": 1.0, "buckets": [1, 2, 3]}},
        ],
    ),
    "calls": {"type": "calls", "calls": [odd_call, odd_call | {"parent": "c1"}], "total": 2},
    "stack": {"type": "stack-of", "id": "c" * 32, "call": odd_call, "chains": [chain(300)]},
    "watch": event(task=ODD, error=ODD, progress=ODD, status=ODD),
}
COMMANDS = (
    ("ping",),
    ("inspect",),
    ("inspect", "--json"),
    ("ps",),
    ("ps", "--json"),
    ("tree",),
    ("stack", "c" * 32),
    ("top", "--rounds", "1"),
    ("watch", "--for", "1s"),
    ("watch", "--for", "1s", "--json"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
async def test_what_a_worker_says_is_shown_as_text(shell: Shell, path: str, arguments: tuple[str, ...]) -> None:
    async with answering(path, ANSWERS):
        where = ("--url", f"unix://{path}", "--timeout", "0.5")
        done = await asyncio.to_thread(shell.run, *arguments, *where)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert {letter for letter in done.out + done.err if not letter.isprintable()} <= {"\n"}
    assert "[31m" in done.out
    if "--json" in arguments:
        assert json.dumps(ODD) in json.dumps([json.loads(line) for line in done.out.splitlines()])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300], ids=str)
async def test_numbers_that_make_no_sense_end_no_command(shell: Shell, path: str, number: float) -> None:
    """The answer is not read. Each kind has one command here: the odd answers of the others are read alike."""
    answers = {"worker": counted(sum=number), "calls": call(age=number), "watch": event(at=number)}
    async with answering(path, answers):
        where = ("--url", f"unix://{path}", "--timeout", "0.5")
        commands = (("inspect",), ("tree",), ("watch", "--for", "1s"))
        found = await asyncio.gather(*(asyncio.to_thread(shell.run, *command, *where) for command in commands))
    assert [(done.code, "Traceback" in done.err) for done in found] == [(0, False)] * 3, found


async def test_the_page_goes_on(path: str) -> None:
    """A feed ends at the first error, and then the page would show the same for good."""
    picture = Picture()
    async with answering(path, ANSWERS):
        feed = asyncio.create_task(FleetFeed(f"unix://{path}").run(picture))
        await until(lambda: picture.snapshot()["tasks"], "the counts are there")
        await until(lambda: picture.snapshot()["calls"], "the calls are there")
        assert not feed.done()
        assert len(picture.queues) <= QUEUES
        json.dumps(picture.snapshot(), allow_nan=False)
        feed.cancel()
        await asyncio.wait([feed])
