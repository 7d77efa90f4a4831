"""A live worker under hostile messages, over RabbitMQ and around a hub, with good calls beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

import atasks
from atasks.signing import keyfile
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.delays import due_key
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.journals import journal_name
from tests.fuzz.samples import NAMESPACE
from tests.fuzz.worker import echo, in_a_thread, lasting, limited, numbers, resuming
from tests.keys import KeyFiles

__all__ = ["Outcome", "over_a_hub", "over_amqp"]

AT_ONCE: Final = 8
"""Good calls in flight."""
AWAITED: Final = 9
"""Kinds of good calls that are awaited."""
SUBMITTED: Final = 11
"""These, and those that are submitted."""


@dataclass
class Outcome:
    """The fate of the good calls, and of the worker."""

    sent: int = 0
    """Hostile messages."""
    refused: int = 0
    """Connections that the other side closed."""
    good: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """The duration of each good call."""
    warm: int = 0
    """Bytes of memory that the worker had a tenth of the way, in messages or in time."""
    grown: int = 0
    """Bytes by which it grew from there to the end."""
    epoch: int = 0
    """Connections that the worker has had."""
    bad: int = 0
    """Messages that it could not read."""
    seals: dict[str, int] = field(default_factory=dict)
    """Messages that it refused for their seals, by reason."""
    steps: int = 0
    """The number of those of a submitted call that resumed meanwhile."""

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98] if len(self.seconds) > 1 else 0.0

    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.sent} hostile messages ({self.refused} connections refused), {self.bad} counted as bad; "
            f"{self.good} good calls, p99 {self.p99 * 1000:.0f} ms, {len(self.wrong)} wrong; "
            f"{self.steps} steps; {self.seals or 'no seals'}; "
            f"memory +{self.grown / 2**20:.1f} MiB, connections of the worker: {self.epoch}"
        )


async def over_amqp(
    url: str, seed: int, messages: int, seconds: float, folder: Path, *, sealed: bool = False
) -> Outcome:
    """Send so many hostile messages, for at most so many seconds, to every kind of queue at the broker. `sealed`:
    the worker and the caller have keys, and so has whoever attacks: one of another caller, and others that nobody
    knows."""
    prefix = f"fuzz-{uuid.uuid4().hex[:8]}"
    topology = Topology(prefix, NAMESPACE)
    lines: list[str] = []
    keys = caller_keys = ""
    if sealed:
        files = KeyFiles(folder, shop="", thief="tasks=echo,numbers max_attempts=2")
        keys, caller_keys = str(files.worker), str(files.caller("shop"))
        unknown = [keyfile.new_line("stranger", "serve"), keyfile.new_line("w", "serve")]
        lines = [files.lines["thief"]] * 3 + unknown
    gate = folder / "gate"
    async with (
        _worker(url, prefix, keys) as (worker, process, outcome),
        atasks.connect(url, namespace=NAMESPACE, prefix=prefix, keys=caller_keys) as transport,
    ):
        assert isinstance(transport, AMQPTransport)
        reply_queue = transport.session.reply_queue
        lasts = await lasting.submit(str(gate))
        ends = asyncio.ensure_future(lasts)  # it reads the record whenever something comes there
        journal = journal_name(lasts.id, True)
        await echo.options(delay=5.0).submit(0)  # so that the levels are there
        targets = [
            *(("", name) for name in topology.all("default")),
            ("", topology.work("default")),
            ("", reply_queue),
            ("", topology.lease("default", worker, 1)),
            ("", topology.dead),
            (topology.control, topology.queue_key("default")),
            (topology.control, topology.worker_key(worker)),
            (topology.control, topology.up_key("default")),
            (topology.control, topology.kept("an-id")),
            ("", topology.kept("an-id")),
            (topology.control, topology.all_key),
            (topology.control, topology.kept_steps("an-id")),
            ("", topology.kept(lasts.id)),
            (topology.control, topology.kept(lasts.id)),
            (topology.control, topology.kept_steps(lasts.id)),
            ("", topology.kept(journal)),
            ("", topology.lock(journal)),
            *(("", topology.delay(level)) for level in range(6)),
            (topology.delay(0), due_key(1, topology.work("default"))),
            (topology.delay(5), due_key(33, topology.work("default"))),
            (topology.due, due_key(0, topology.work("default"))),
            (topology.due, "anything"),
            (topology.events, topology.event_key("happened")),
            ("", topology.work("events:happened:counting")),
            ("", topology.every_worker(worker, 1)),
            ("", topology.unique("an-id")),
            ("", topology.schedules),
            ("", f"{topology.schedules}.leader"),
            ("", topology.limit("a-limit", None)),
            ("", f"{topology.limit('a-limit', None)}.places"),
            ("", topology.paused("default")),
        ]
        addresses = [
            reply_queue,
            f"{prefix}.r.nobody",
            "",
            topology.stored,
            topology.nobody,
            topology.events,
            topology.kept(lasts.id),
            topology.lock(journal),
            topology.work("default"),
            topology.delay(0),
            "amq.rabbitmq.reply-to.x",
            "amq.rabbitmq.reply-to.g2gCZA==.x",
        ]
        attacker: dict[str, Any] = {"url": url, "seed": seed, "prefix": prefix, "lines": lines}
        attack = Attack("broker", messages, seconds, targets=targets, addresses=addresses, **attacker)
        try:
            await _beside(attack, outcome, process, SUBMITTED)
            gate.touch()
            async with asyncio.timeout(60):
                outcome.steps = await ends
                assert await atasks.attach(lasts.dumps()) == outcome.steps
        finally:
            ends.cancel()
    return outcome


async def over_a_hub(path: str, seed: int, frames: int, seconds: float) -> Outcome:
    """Send so many hostile frames, for at most so many seconds, to a hub and the worker in its process."""
    url = f"unix://{path}"
    async with (
        _worker(url, "fuzz", "") as (_, process, outcome),
        atasks.connect(url, namespace=NAMESPACE, hub=False),
    ):
        await _beside(Attack("hub", frames, seconds, path=path, seed=seed), outcome, process)
    return outcome


class Attack:
    """Hostile messages from a process of their own."""

    def __init__(self, kind: str, messages: int, seconds: float, **arguments: Any) -> None:
        self.messages, self.seconds = messages, seconds
        said = json.dumps({"messages": messages, "seconds": seconds, **arguments})
        self._command = [sys.executable, "-m", "tests.fuzz.attackers", kind, said]

    async def run(self, outcome: Outcome) -> None:
        """Return when it is over, and have the outcome say how far it is."""
        child = await asyncio.create_subprocess_exec(*self._command, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        try:
            async for line in child.stdout:
                outcome.sent, outcome.refused = json.loads(line)
            assert await child.wait() == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


async def _beside(attack: Attack, outcome: Outcome, process: psutil.Process, kinds: int = AWAITED) -> None:
    """Make good calls, of so many kinds, while the attack goes on, and for a moment after it."""
    attacking = asyncio.create_task(attack.run(outcome))
    count = 0
    soon = time.monotonic() + attack.seconds / 10

    async def one(number: int) -> None:
        started, kind = time.monotonic(), number % kinds
        try:
            async with asyncio.timeout(30):
                match kind:
                    case 0:
                        found: Any = await in_a_thread(number)
                    case 1:
                        found = [item async for item in numbers(5)]
                        number = [0, 1, 2, 3, 4]  # type: ignore[assignment]
                    case 2:
                        found = await echo.options(delivery="at_most_once")(number)
                    case 3:
                        found = await echo.options(max_attempts=1)(number)
                    case 4:
                        found = await limited(number)
                    case 5:
                        found = await resuming(number)
                    case 9:
                        found = await (await echo.submit(number))
                    case 10:
                        found = await (await echo.options(delay=0.1).submit(number))
                    case _:
                        found = await echo(number)
        except Exception as error:
            outcome.wrong.append(f"a call of kind {kind}: {type(error).__name__}: {error}")
            return
        outcome.seconds.append(time.monotonic() - started)
        outcome.good += 1
        if found != number:
            outcome.wrong.append(f"{found} instead of {number}")

    try:
        while not attacking.done():
            count += AT_ONCE
            await asyncio.gather(*(one(count + n) for n in range(AT_ONCE)))
            if not outcome.warm and (outcome.sent >= attack.messages // 10 or time.monotonic() >= soon):
                outcome.warm = process.memory_info().rss
            await asyncio.sleep(0.02)
        await attacking
        await asyncio.gather(*(one(count + AT_ONCE + n) for n in range(AT_ONCE)))
        outcome.grown = process.memory_info().rss - outcome.warm
    finally:
        attacking.cancel()
        await asyncio.wait([attacking])


@contextlib.asynccontextmanager
async def _worker(url: str, prefix: str, keys: str) -> AsyncIterator[tuple[str, psutil.Process, Outcome]]:
    """The worker in a process of its own; in the end the outcome has what it told."""
    outcome = Outcome()
    command = [sys.executable, "-m", "tests.fuzz.worker", url, prefix, keys]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        hello = json.loads(await asyncio.wait_for(child.stdout.readline(), 60))
        yield hello["id"], psutil.Process(child.pid), outcome
        child.terminate()
        told = json.loads(await asyncio.wait_for(child.stdout.readline(), 60))
        outcome.bad, outcome.epoch, outcome.seals = told["bad"], told["epoch"], told["seals"]
        outcome.wrong += told["raised"]
        assert await asyncio.wait_for(child.wait(), 60) == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
