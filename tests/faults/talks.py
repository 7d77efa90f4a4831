"""A caller process of this or another version of atasks: `python -m tests.faults.talks RECORD ARGUMENTS`.

It imports nothing that an older version does not have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import Any

import atasks
from atasks import CallTimeout, WorkerLost
from atasks.pipeline import attach
from tests.faults import tasks
from tests.faults.history import Delivery, History, settled
from tests.faults.processes import Process
from tests.waiting import wait_until

__all__ = ["TalkProcess"]


class TalkProcess(Process):
    """One of the talks below; it exits with 0 if all went as it has to."""

    def __init__(
        self, record: Path, talk: str, url: str, options: dict[str, Any], sources: Path | None, **arguments: Any
    ) -> None:
        given = {"talk": talk, "url": url, "options": options, "arguments": arguments}
        super().__init__("tests.faults.talks", str(record), json.dumps(given), sources=sources)

    def done(self) -> str:
        """Wait until the program has ended well, and return what it printed."""
        code = self.wait()
        assert code == 0, self.output
        return self.output.strip()


async def _read(count: int, enough: int, gate: str) -> None:
    seen = 0
    stream = tasks.counting(f"stream-{random.getrandbits(64):x}", count, gate)
    async for number, _ in stream:
        assert number == seen
        seen += 1
        if seen == enough:
            break
    await stream.aclose()
    assert seen == min(count, enough)


async def everything(history: History, *, gate: str) -> None:
    """Each kind of call, many at once, while the workers stay."""
    fine = [task for priority in range(4) for task in history.start(75, tasks.echo, priority=priority)]
    fine += history.start(50, tasks.echo, delivery="at_most_once")
    failing = history.start(20, tasks.boom)
    late = history.start(20, tasks.work, 60, timeout=1.0)
    cut = history.start(20, tasks.work, 61)
    streams = [_read(300, enough, gate) for enough in (300, 300, 20, 1)]
    trees = [tasks.fib(8), tasks.fan(60), tasks.chain(20)]
    values = settled(asyncio.gather(*trees), "trees of calls")
    read = settled(asyncio.gather(*streams), "streams")
    ended = settled(asyncio.gather(*fine, *failing, *late), "calls")
    results, _, endings = await asyncio.gather(values, read, ended)
    assert results == [21, sum(range(60)), 20]
    assert [type(each.error).__name__ for each in endings[-40:]] == ["Failed"] * 20 + [CallTimeout.__name__] * 20
    await asyncio.to_thread(
        wait_until, lambda: history.started() >= len(history.made) + len(streams), "every call runs"
    )
    for task in cut:
        task.cancel()
    await asyncio.wait(cut)
    stopped = [
        ended.key for ended in history.awaits if isinstance(ended.error, (CallTimeout, asyncio.CancelledError))
    ]
    assert len(stopped) == 40

    def endings_of() -> set[str | None]:
        return {run.ending for key in stopped for run in history.runs(key)}

    await asyncio.to_thread(
        wait_until, lambda: endings_of() == {"cancelled"}, "runs that nobody awaits are stopped", 5
    )
    assert history.errors() == {"value": 350, "Failed": 20, "CallTimeout": 20, "CancelledError": 20}
    assert {run.attempt for run in history.runs()} == {1}
    history.made.update({run.key: "at_least_once" for run in history.runs() if run.key.startswith("stream-")})
    _check(history)


def _check(history: History) -> None:
    """Check the calls of this process as `history.check` does: others share its record."""
    mine = [breach for breach in history.breaches() if breach[0] in history.made]
    problems = [each for each in mine if not each[0].startswith("stream-")]
    assert not problems, problems


async def load(history: History, *, over: str) -> None:
    """Calls of mixed length, streams and trees, one after the other in each client, until `over` exists."""
    dice = random.Random(7)

    async def calls() -> None:
        while not Path(over).exists():
            delivery: Delivery = "at_most_once" if dice.random() < 0.25 else "at_least_once"
            seconds = dice.choice([0.0, 0.01, 0.1, 0.5, 2.0])
            await settled(history.call(tasks.work, seconds, delivery=delivery), "a call", 60)

    async def streams() -> None:
        while not Path(over).exists():
            await settled(_read(100, 100, over[:1]), "a stream", 60)  # the gate is a path that is always there

    async def trees() -> None:
        while not Path(over).exists():
            assert await settled(tasks.fib(7), "a tree", 60) == 13

    await asyncio.gather(*(calls() for _ in range(12)), streams(), trees())
    failed = [each for each in history.awaits if each.error is not None]
    cut_off = [each for each in failed if each.delivery == "at_most_once" and type(each.error) is WorkerLost]
    assert failed == cut_off  # by a drain that was shorter than they were, and that may not be tried again
    _check(history)


async def doomed(history: History, *, how: str) -> None:
    """A call that ends each of its workers."""
    ended = await settled(history.call(tasks.crash, how), "the call", 60)
    assert isinstance(ended.error, WorkerLost), ended
    assert ended.error.attempts == 3
    assert [run.attempt for run in history.runs(ended.key)] == [1, 2, 3]
    _check(history)


async def waiting(history: History, *, count: int, gate: str, ready: str, asked: bool) -> None:
    """Calls that wait for a worker. Half of them are cancelled; then `ready` is made, and the others end. Is the
    caller `asked` before they begin?"""
    calls = history.start(count, tasks.gated, gate)
    await asyncio.sleep(4)  # what waits for so long is not begun without asking
    for call in calls[::2]:
        call.cancel()
    await asyncio.wait(calls[::2])
    Path(ready).touch()
    await settled(asyncio.gather(*calls[1::2]), "calls that waited", 60)
    assert history.errors() == {"value": count // 2, "CancelledError": count // 2}
    unwanted = {each.key for each in history.awaits if each.error is not None}
    assert not asked or not [run for run in history.runs() if run.key in unwanted]
    _check(history)


async def leave(history: History, *, count: int, gate: str, ready: str) -> None:
    """Leaves with calls that run, and more that wait."""
    calls = history.start(count, tasks.gated, gate)
    await asyncio.to_thread(wait_until, lambda: history.started(), "one runs")
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    Path(ready).touch()


async def relay(_: History, *, queues: list[str]) -> None:
    """Calls that call each other from queue to queue; prints where they ran."""
    print(json.dumps(await settled(tasks.relayed.options(queue=queues[0])(queues[1:]), "the chain")))


async def read(_: History, *, id: str) -> None:
    """Prints the result of a submitted run, and the one of its second stage."""
    handle = attach(id)
    print(json.dumps([await settled(handle, "the run"), await settled(handle.step(1), "its second stage")]))


TALKS = {each.__name__: each for each in (everything, load, doomed, waiting, leave, relay, read)}


async def main(record: Path, talk: str, url: str, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    history = History(record)
    with history.listening():
        async with atasks.connect(url, **options):
            await TALKS[talk](history, **arguments)  # type: ignore[operator]  # each has its own arguments


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("given", type=json.loads)
    parsed = parser.parse_args()
    asyncio.run(main(parsed.record, **parsed.given))
