"""Questions that make no sense: they cost a worker nothing."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import pytest
from msgspec import msgpack

from atasks.tracking.queries import MAX_PATTERN, Inspect, decode_question

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
