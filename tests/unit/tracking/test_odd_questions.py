"""Questions that make no sense: they cost a worker nothing."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import pytest
from msgspec import msgpack

import atasks
from atasks.tracking.fleet import Fleet
from atasks.tracking.queries import MAX_PATTERN, Inspect, decode_question
from atasks.transport.call_transport import CallTransport

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "question",
    [
        {"type": "watch", "kinds": ["ended"], "sample": NAN},
        {"type": "watch", "kinds": ["ended"], "sample": INFINITY},
        {"type": "watch", "kinds": ["ended"], "sample": -1.0},
        {"type": "watch", "kinds": ["ended"], "lease": NAN},
        {"type": "watch", "kinds": ["ended"] * 65},
        {"type": "inspect", "what": "calls", "older": NAN},
        {"type": "inspect", "what": "calls", "task": "[!" * 60_000},
        {"type": "inspect", "what": "calls", "limit": 0},
        {"type": "stack", "id": 5},
    ],
    ids=str,
)
def test_question_that_makes_no_sense(question: dict[str, object]) -> None:
    assert decode_question(msgpack.encode(question)) is None


def test_the_longest_pattern_is_read_in_no_time() -> None:
    found = decode_question(
        msgpack.encode({"type": "inspect", "what": "calls", "task": "[!" * (MAX_PATTERN // 2)})
    )
    assert isinstance(found, Inspect)
    since = time.thread_time()
    assert not fnmatchcase("module.name", found.task)
    assert time.thread_time() - since < 1


async def test_nothing_has_a_name_that_no_message_can_carry(namespace: str) -> None:
    """A person gives such names, by bytes on the command line or by JSON."""
    async with atasks.connect("loopback:", namespace=namespace) as transport:
        assert isinstance(transport, CallTransport)
        fleet = Fleet(transport, size=1)
        assert await fleet.cancel(["\udcff", "an-id"]) == []
        assert await fleet.stack("\udcff") is None
        assert (await fleet.calls(task="\udcff*")).calls == []
