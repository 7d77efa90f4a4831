"""Random takers of a limit, who leave, stop waiting and die: never more than it says, and no token is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from atasks import Transport
from atasks.connection import use
from atasks.policies.limit import Rule
from atasks.testing import soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.limits.contract import Token
from tests.broker import Broker
from tests.faults.proxy import Proxy

CASES = int(os.environ.get("ATASKS_LIMIT_CASES", "0"))
"""The number of examples to try; by default few, and always the same ones."""
PROCESSES = 3
GRAIN = 0.002
"""Seconds: the broker counts time in milliseconds, and the clock of this process is another one."""

Word = Literal["ask", "leave", "stop", "die", "cut", "pause"]


class Step(NamedTuple):
    """A step of one process."""

    word: Word
    process: int
    pick: int
    """The taker of that process, or milliseconds."""


@dataclass(eq=False)
class Taker:
    """Somebody who wants a token."""

    process: int
    waiting: asyncio.Task[Token]
    token: Token | None = None
    is_cut: bool = False
    """True if it holds what the broker gave to others when its connection was cut."""


@dataclass
class Model:
    """All processes together, and what they saw."""

    rules: Sequence[Rule]
    transports: Sequence[Transport]
    proxies: Sequence[Proxy]
    takers: list[Taker] = field(default_factory=list)
    declared: set[int] = field(default_factory=set)
    began: list[float] = field(default_factory=list)

    @property
    def inside(self) -> list[Taker]:
        return [taker for taker in self.takers if taker.token is not None]

    @property
    def most(self) -> int:
        """The greatest of the numbers that were declared: tokens that are too many go as they come back."""
        return max(self.rules[number].at_once for number in self.declared)

    def ask(self, process: int) -> None:
        self.declared.add(process)
        taker = Taker(process, asyncio.create_task(self._take(process)))
        taker.waiting.add_done_callback(lambda task: self._granted(taker, task))
        self.takers.append(taker)

    async def _take(self, process: int) -> Token:
        limits = self.transports[process].limits
        assert limits is not None
        token = await limits.take("x", None, self.rules[process])
        self.began.append(asyncio.get_running_loop().time())
        token.begin()
        return token

    def _granted(self, taker: Taker, task: asyncio.Task[Token]) -> None:
        if task.cancelled():
            return
        taker.token = task.result()
        if taker not in self.takers:  # it died in this turn of the loop
            taker.token.release()
            return
        fair = [other for other in self.inside if not other.is_cut]
        if self.most:
            assert len(fair) <= self.most, f"{len(fair)} are inside"

    def mine(self, process: int, *, inside: bool) -> list[Taker]:
        return [taker for taker in self.takers if taker.process == process and (taker.token is not None) == inside]

    def leave(self, taker: Taker) -> None:
        self.takers.remove(taker)
        assert taker.token is not None
        taker.token.release()

    async def stop(self, taker: Taker) -> None:
        """Have it want no token any more."""
        self.takers.remove(taker)
        taker.waiting.cancel()
        await asyncio.wait((taker.waiting,))

    def die(self, process: int) -> None:
        """A process is killed; another one takes its place. Around a hub nothing happens."""
        if not self.proxies:
            return
        for taker in [*self.mine(process, inside=True), *self.mine(process, inside=False)]:
            self.takers.remove(taker)
            taker.waiting.cancel()
        self.cut(process)

    def cut(self, process: int) -> None:
        """Cut its connection; those who are inside do not know."""
        if self.proxies:
            for taker in self.mine(process, inside=True):
                taker.is_cut = True
            self.proxies[process].drop()

    async def do(self, step: Step) -> None:
        if step.word == "ask":
            self.ask(step.process)
        elif step.word == "pause":
            await asyncio.sleep(step.pick / 1000)
        elif step.word == "die":
            self.die(step.process)
        elif step.word == "cut":
            self.cut(step.process)
        elif chosen := self.mine(step.process, inside=step.word == "leave"):
            taker = chosen[step.pick % len(chosen)]
            if step.word == "leave":
                self.leave(taker)
            else:
                await self.stop(taker)

    async def all_leave(self) -> None:
        """Everybody has a turn."""
        while self.takers:
            await until(lambda: bool(self.inside), "one of those who wait has its turn")
            self.leave(self.inside[0])

    def check_rate(self, rule: Rule) -> None:
        if rule.per_period:
            for earlier, later in zip(self.began, self.began[rule.per_period :], strict=False):
                assert later - earlier > rule.period - GRAIN


async def holds(transport: Transport, rule: Rule) -> None:
    """There are as many places as the rule says, and no more; and tokens of the rate come again and again."""
    limits = transport.limits
    assert limits is not None

    async def take() -> Token:
        token = await limits.take("x", None, rule)
        token.begin()
        return token

    if not rule.at_once:
        for _ in range(2 * rule.per_period):
            await soon(take())
        return
    while True:  # tokens of an older number may be there for a while: the test's own deadline ends it
        tokens = [await soon(take()) for _ in range(rule.at_once)]
        more = asyncio.create_task(take())
        await asyncio.wait((more,), timeout=max(0.05, 1.5 * rule.period))
        if not more.done():
            break
        for token in (*tokens, more.result()):
            token.release()
    tokens.pop().release()
    tokens.append(await soon(more))
    for token in tokens:
        token.release()


Place = Callable[[], AbstractAsyncContextManager[tuple[list[Transport], list[Proxy]]]]


@pytest.fixture(params=["amqp", "local"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Connects the processes, and one more, to a broker or a hub."""
    with contextlib.ExitStack() as ending:
        if request.param == "amqp":
            broker: Broker = request.getfixturevalue("broker")
            prefix: str = request.getfixturevalue("prefix")
            request.getfixturevalue("amqp_leaks")
            proxies = [Proxy(broker.url) for _ in range(PROCESSES)]
            for proxy in proxies:
                ending.callback(proxy.close)

            @asynccontextmanager
            async def connected() -> AsyncIterator[tuple[list[Transport], list[Proxy]]]:
                namespace = uuid.uuid4().hex
                async with AsyncExitStack() as stack:
                    transports: list[Transport] = []
                    for url in (*(proxy.url() for proxy in proxies), broker.url):
                        transports.append(AMQPTransport(url, namespace, prefix=prefix))
                        await use(stack, transports[-1])
                    yield transports, proxies

        else:
            folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="at-"))

            @asynccontextmanager
            async def connected() -> AsyncIterator[tuple[list[Transport], list[Proxy]]]:
                path = f"{folder}/{uuid.uuid4().hex[:8]}"
                async with AsyncExitStack() as stack:
                    host = await Host.open(path)
                    stack.push_async_callback(host.close)
                    transports: list[Transport] = []
                    for _ in range(PROCESSES + 1):
                        transports.append(LocalTransport(path, "limits", hub=False))
                        await use(stack, transports[-1])
                    yield transports, []

        yield connected


async def play(place: Place, rules: Sequence[Rule], last: Rule, steps: Sequence[Step]) -> None:
    async with place() as (transports, proxies):
        if not proxies:  # around a hub all say the same
            rules, last = [rules[0]] * PROCESSES, rules[0]
        model = Model(rules, transports, proxies)
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        for step in steps:
            await model.do(step)
        await model.all_leave()
        model.check_rate(rules[0])
        await holds(transports[-1], last)
        assert not reports


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["ask"] * 8 + ["leave"] * 5 + ["pause"] * 3 + ["stop"] * 2 + ["die", "cut"]),
        st.integers(0, PROCESSES - 1),
        st.integers(0, 20),
    ),
    min_size=5,
    max_size=40,
)

bounded: Any = settings(
    max_examples=CASES or 12,
    derandomize=not CASES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if CASES else [])],
    suppress_health_check=list(HealthCheck),
)


@bounded
@given(numbers=st.lists(st.integers(1, 4), min_size=PROCESSES + 1, max_size=PROCESSES + 1), steps=STEPS)
def test_never_more_at_once(place: Place, numbers: list[int], steps: list[Step]) -> None:
    """The last number is that of a process which comes when all others have left."""
    rules = [Rule(number, 0, 0.0) for number in numbers]
    asyncio.run(play(place, rules[:-1], rules[-1], steps))


@bounded
@given(count=st.integers(1, 5), places=st.integers(0, 3), steps=STEPS)
@example(count=1, places=0, steps=[Step("ask", 0, 0), Step("die", 0, 0), Step("ask", 1, 0)])
def test_never_more_in_a_period(place: Place, count: int, places: int, steps: list[Step]) -> None:
    rule = Rule(places, count, 0.1)
    asyncio.run(play(place, [rule] * PROCESSES, rule, steps))


async def take_turns(place: Place, places: int, asked: Sequence[int]) -> Counter[int]:
    """Grants of each process in the turns of all. Each process wants one token after the other, as often at a time
    as it has asked for: at first once, and then a few times more each time."""
    grants: list[int] = []
    rule = Rule(places, 0, 0.0)
    async with place() as (transports, _):

        async def want(process: int) -> None:
            limits = transports[process].limits
            assert limits is not None
            while True:
                token = await limits.take("x", None, rule)
                grants.append(process)
                await asyncio.sleep(0.002)
                token.release()

        tasks: list[asyncio.Task[None]] = []
        for number in range(max(asked)):
            more = [process for process, count in enumerate(asked) if number < count]
            tasks += [asyncio.create_task(want(process)) for process in more]
            since = len(grants)
            await until(lambda: len(set(grants[since:])) == PROCESSES, "each has had a turn")  # noqa: B023
        begin = len(grants)
        await until(lambda: len(grants) >= begin + 300, "they have had their turns")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return Counter(grants[begin : begin + 300])


@pytest.mark.parametrize("places", [1, 3])
async def test_processes_have_their_turns(place: Place, places: int) -> None:
    """One that wants more tokens, or has asked for more while it held some, has no more turns than the others."""
    turns = await take_turns(place, places, [16, 8, 4])
    assert min(turns[process] for process in range(PROCESSES)) >= 94, turns
