"""Quick calls are sent to a process together, and nothing else changes by that: no item waits for another one,
none is called twice, and none is lost with another one."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atasks.errors import PipelineError
from atasks.pipeline import bind, map, ordered
from atasks.pipeline.flow.channel import Channel
from atasks.pipeline.flow.child import SharedResults
from atasks.pipeline.flow.messages import ChildLink, ChildMessage, message
from atasks.testing import until
from tests.unit.pipeline.noted import Counted, Noted, Random, Unsendable, identity, kind, place, slow_from
from tests.unit.pipeline.test_model import bounded
from tests.unit.pipeline.test_processes import children


class Incomparable:
    """Raises where it is compared, as an array does where truth is asked of what comes of that."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


class LikeAll:
    """Is equal to everything."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


async def test_quick_calls_cost_no_message_each(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = 0
    send = ChildLink.send

    def counted(link: ChildLink, *args: Any) -> None:
        nonlocal messages
        messages += 1
        send(link, *args)

    monkeypatch.setattr(ChildLink, "send", counted)
    assert await (range(2000) | map(identity, multiprocess=True)) == list(range(2000))
    assert messages < 1000


@pytest.mark.parametrize("large", [str, lambda n: bytes([n]), lambda n: [str(n)]], ids=["text", "bytes", "list"])
async def test_large_items_behind_small_ones_are_not_all_sent_at_once(
    monkeypatch: pytest.MonkeyPatch, large: Any
) -> None:
    sizes = []
    send = ChildLink.send

    def counting(link: ChildLink, message: Any) -> None:
        sizes.append(sum(len(piece) for piece in message))
        send(link, message)

    monkeypatch.setattr(ChildLink, "send", counting)
    items = [*range(5000), *(large(n) * 2**18 for n in range(40)), *range(100)]
    assert await (items | map(kind, multiprocess=True)) == [type(item) for item in items]
    assert max(sizes) < 2**22


async def test_calls_that_are_sent_together_have_their_lineages() -> None:
    found = await (range(300) | map(place, multiprocess=True))
    assert found == [(n, (n,)) for n in range(300)]


async def test_more_results_may_wait_where_calls_are_quick_but_no_more_than_the_throttle_says(
    tmp_path: Path,
) -> None:
    """By default up to 1 024 wait for a consumer that takes them faster than they come."""
    counted = Counted(tmp_path)
    run: Any = aiter(range(10**9) | map(counted, multiprocess=True))
    taken = ahead = 0
    while ahead <= 64 + 1:
        await anext(run)
        taken += 1
        ahead = max(ahead, counted.count() - taken)
        assert ahead <= 1024 + 1
    await run.aclose()
    assert taken > 1


@pytest.mark.parametrize("throttle", [5, 64])
async def test_a_throttle_that_is_given_is_kept(tmp_path: Path, throttle: int) -> None:
    counted = Counted(tmp_path)
    run: Any = aiter(range(10**9) | map(counted, multiprocess=True, throttle=throttle))
    for taken in range(1, 2001):
        await anext(run)
        assert counted.count() <= taken + throttle + 1
    await run.aclose()


async def test_room_grows_for_quick_tokens_that_are_taken_at_once_and_goes_at_once() -> None:
    channel = Channel(64)
    channel.fit(10**6)
    assert channel.capacity == 64, "the throttle was given"
    channel.most = 1024
    found = []
    for _ in range(6):
        channel.fit(10**6)
        found.append(channel.capacity)
    assert found == [128, 256, 512, 1024, 1024, 1024]
    await channel.put(((0,), 0))
    channel.fit(500)
    assert channel.capacity == 500, "more would wait for longer than they may"
    channel.fit(10**6)
    assert channel.capacity == 500, "the consumer is behind"
    channel.fit(0.1)
    assert channel.capacity == 64


async def test_items_that_turn_out_to_be_slow_are_spread_over_the_processes() -> None:
    run = range(3100) | map(slow_from, bind=bind(3000), multiprocess=True, workers=4)
    found = Counter([pid for _, pid in await run.indexed()][3000:])
    assert found.total() == 100
    assert max(found.values()) < 60


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["dies", "fails", "unreadable", "unsendable"])
async def test_an_item_that_comes_to_nothing_has_no_other_with_it(tmp_path: Path, what: str, workers: int) -> None:
    noted = Noted(tmp_path, **{what: 150})
    run = range(300) | map(noted, multiprocess=True, workers=workers, skip_errors=True)
    found = [item async for item in run]
    assert sorted(found) == [x for x in range(300) if x != 150]
    assert sorted(noted.calls()) == list(range(300))
    if workers == 1:
        assert noted.calls() == list(range(300)), "the order is that of the items"
        assert found == sorted(found)


async def test_an_item_that_cannot_be_sent_has_its_turn_and_no_other_with_it() -> None:
    items = [Unsendable() if x in (150, 151) else x for x in range(300)]
    run = items | map(identity, multiprocess=True, skip_errors=True)
    assert [item async for item in run] == [x for x in range(300) if x not in (150, 151)]
    found = []
    with pytest.raises(TypeError, match="unsendable") as raised:
        async for item in items | map(identity, multiprocess=True):
            found.append(item)  # noqa: PERF401 - those before an error count
    assert found == list(range(150))
    assert raised.value.__notes__[-1] == "in stage 'identity', at item (150,)"


async def test_nothing_is_begun_behind_an_error(tmp_path: Path) -> None:
    noted = Noted(tmp_path, fails=150)
    with pytest.raises(ValueError, match="150"):
        await (range(300) | map(noted, multiprocess=True))
    assert noted.calls() == list(range(151))


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_death_is_the_error_of_the_item_that_was_begun(tmp_path: Path, workers: int) -> None:
    noted = Noted(tmp_path, dies=150)
    with pytest.raises(PipelineError, match="exit code -9") as raised:
        await (range(300) | map(noted, multiprocess=True, workers=workers))
    assert raised.value.__notes__ == ["in stage 'noted', at item (150,)"]


@pytest.mark.parametrize("skip_errors", [False, True])
async def test_a_death_behind_the_last_result_takes_no_item_with_it(tmp_path: Path, skip_errors: bool) -> None:
    noted = Noted(tmp_path, dies_behind=150)
    run = range(1000) | map(noted, multiprocess=True, skip_errors=skip_errors)
    assert [item async for item in run] == list(range(1000))
    assert noted.calls() == list(range(1000))
    assert noted.died.exists()


@pytest.mark.parametrize("result", [Incomparable, LikeAll])
async def test_results_are_not_compared(result: type) -> None:
    items = [result() for _ in range(100)]
    assert [type(item) for item in await (items | map(identity, multiprocess=True))] == [result] * 100


async def test_results_do_not_wait_for_a_slow_call_behind_them(tmp_path: Path) -> None:
    noted = Noted(tmp_path, waits=150)
    run = aiter(range(300) | map(noted, multiprocess=True))
    try:
        assert [await anext(run) for _ in range(150)] == list(range(150))
    finally:
        noted.gate.touch()
    assert [item async for item in run] == list(range(150, 300))


@pytest.mark.parametrize("slow", [0, 150, 280, 299])
@pytest.mark.parametrize("behind", [False, True])
async def test_an_idle_process_gets_what_waits_behind_a_slow_item(tmp_path: Path, slow: int, behind: bool) -> None:
    """So it does at the end of the stream, when it has nothing else to do any more."""
    noted = Noted(tmp_path, waits=slow)
    run = range(300) | map(int) if behind else range(300)
    items = aiter(run | map(noted, multiprocess=True, workers=2))
    try:
        found = [await anext(items) for _ in range(299)]
        assert sorted(found) == [x for x in range(300) if x != slow]
    finally:
        noted.gate.touch()
    assert [item async for item in items] == [slow]
    assert sorted(noted.calls()) == list(range(300))


async def test_a_busy_process_gets_what_waits_behind_a_slow_item(tmp_path: Path) -> None:
    """The source has no end, so the other process always has items: those behind the slow one come among them."""
    noted = Noted(tmp_path, waits=200)
    run: Any = aiter(range(10**9) | map(noted, multiprocess=True, workers=2))
    wanted = {x for x in range(600) if x != 200}
    try:
        async with asyncio.timeout(60):
            while wanted:
                wanted.discard(await anext(run))
    finally:
        noted.gate.touch()
    await run.aclose()


async def test_a_process_has_not_begun_more_than_a_thread_would(tmp_path: Path) -> None:
    """Items that were sent keep their room before the stage until they begin, and results have theirs behind."""
    begun = 0

    def first(x: int) -> int:
        nonlocal begun
        begun += 1
        return x

    noted = Noted(tmp_path)
    run: Any = aiter(range(10**9) | map(first, throttle=8) | map(noted, multiprocess=True, workers=2, throttle=8))
    for taken in range(1, 6):
        await anext(run)
        await until(lambda: len(noted.calls()) >= taken + 8)  # noqa: B023 - it goes as far as it may
        await asyncio.sleep(0.3)
        assert len(noted.calls()) <= taken + 8 + 2
        assert begun <= len(noted.calls()) + 8 + 1
    await run.aclose()


def grown(x: Any) -> int:
    x += b"1"
    return len(x)


async def test_calls_do_not_share_what_they_change() -> None:
    """Though one object is the item of many calls that are sent together."""
    item = bytearray(3)
    assert await ([item] * 300 | map(grown, multiprocess=True)) == [4] * 300


async def test_results_of_all_kinds_keep_their_order_among_those_that_are_to_be_awaited() -> None:
    found = await (range(300) | map(sometimes_awaitable, multiprocess=True))
    assert found == list(range(300))


class Later:
    def __init__(self, x: int) -> None:
        self.x = x

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        return self.x


def sometimes_awaitable(x: int) -> Any:
    return Later(x) if x % 40 == 7 else x


def doubled(x: bytes) -> bytes:
    return x * 2


@pytest.mark.parametrize("size", [100, 5000, SharedResults.SIZE, 300_000])
async def test_items_and_results_of_any_size_follow_each_other(size: int) -> None:
    items = [bytes([n]) * (size if n % 2 else 100 * n) for n in range(100)]
    run = items | map(doubled, multiprocess=True) | map(doubled, multiprocess=True)
    async with asyncio.timeout(60):
        assert [item async for item in run] == [doubled(doubled(item)) for item in items]


@pytest.mark.parametrize("waits", [-1, 100])
async def test_leaving_amid_calls_that_were_sent_together_ends_the_processes(tmp_path: Path, waits: int) -> None:
    noted = Noted(tmp_path, waits=waits)
    run: Any = aiter(range(10**9) | map(noted, multiprocess=True, workers=2))
    for _ in range(90):
        await anext(run)
    async with asyncio.timeout(30):
        await run.aclose()
    assert children() == []
    begun = noted.calls()
    assert sorted(begun) == sorted({*begun})


# -- random runs, beside what plain Python says of them


@bounded(6)
@given(
    st.one_of(st.integers(0, 200), st.integers(0, 3000)),
    st.integers(0, 1000),
    st.sampled_from((71, 499)),
    st.sampled_from((1, 1, 2, 3)),
    st.sampled_from((None, None, 64, 1, 2, 7, 0)),
    st.sampled_from(("range", "thread", "generator")),
    st.booleans(),
)
def test_a_random_run_gives_what_plain_python_says(
    tmp_path_factory: Any,
    length: int,
    salt: int,
    rare: int,
    workers: int,
    throttle: int | None,
    source: str,
    order: bool,
) -> None:
    folder = tmp_path_factory.mktemp("random")
    work = Random(folder, salt, rare)
    items: Any = range(length) if source != "generator" else (x for x in range(length))
    run = items | map(int, throttle=throttle) if source == "thread" else items
    run = run | map(work, multiprocess=True, workers=workers, throttle=throttle, skip_errors=True)
    run = run | map(identity, multiprocess=True)
    found = asyncio.run(gathered(run | ordered() if order else run))
    expected = work.expected(iter(range(length)))
    if order or workers == 1:
        assert found == expected
    else:
        assert sorted(found, key=repr) == sorted(expected, key=repr)
    calls = Noted(folder).calls()
    assert len(calls) == len({*calls}), "an item was called twice"


async def gathered(run: Any) -> list[Any]:
    async with asyncio.timeout(60):
        return [item async for item in run]


def test_what_is_shared_is_there_once_it_is_added() -> None:
    descriptor = SharedResults.new_file()
    writer, reader = SharedResults(descriptor), SharedResults(descriptor)
    os.close(descriptor)
    reader.clear()
    results: list[Any] = [[n] * 500 if n % 2 else str(n) * 500 for n in range(256)]
    added = list(itertools.takewhile(lambda result: writer.add_result(result) is None, results))
    assert list(reader.read(SharedResults.BEGIN, reader.end())) == [(True, each) for each in added]
    assert 60 < len(added) < 80
    assert writer.add_result("x" * SharedResults.SIZE) == message(ChildMessage.VALUE, "x" * SharedResults.SIZE)
    reader.clear()
    assert writer.add_result("again") is None
    assert list(reader.read(SharedResults.BEGIN, reader.end())) == [(True, "again")]
    writer.close()
    reader.close()


_WRITER = """
import sys
from atasks.pipeline.flow.child import SharedResults
results = SharedResults(int(sys.argv[1]))
while True:
    results.clear()
    while results.add((b"result",)):
        results.took(1.0)
"""


def test_a_writer_may_die_at_any_moment() -> None:
    """The end is at all times one that was stored: no call is made again because of a death."""
    descriptor = SharedResults.new_file()
    reader = SharedResults(descriptor)
    reader.clear()
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(descriptor)], pass_fds=[descriptor])
    os.close(descriptor)
    size = SharedResults.BEGIN, 4 + len(b"result")
    ends = set()
    try:
        deadline = time.monotonic() + 60
        while len(ends) < 1000 and time.monotonic() < deadline:
            ends.add(reader.end())
    finally:
        writer.kill()
        writer.wait()
        reader.close()
    assert len(ends) > 100
    assert [end for end in ends if end < size[0] or (end - size[0]) % size[1]] == []
