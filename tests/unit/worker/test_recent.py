"""A worker's memory of ended calls stays within its bounds."""

# Private attributes: `RecentReplies._bytes` and `_owners`: the sum, and the names, must be those of what is kept.

from __future__ import annotations

import random
import time
from collections import OrderedDict

import pytest

from atasks.wire import Reply
from atasks.worker.recent import RecentIds, RecentReplies


def reply(size: int) -> Reply:
    return Reply(1, "id", 0, bytes(size))


def test_recent_ids_are_the_last_ones() -> None:
    ids = RecentIds(3)
    for number in range(10):
        ids.add(str(number))
        assert len(ids) <= 3
    assert [str(number) in ids for number in range(10)] == [False] * 7 + [True] * 3


def test_an_id_that_is_added_again_is_recent_again() -> None:
    ids = RecentIds(2)
    for call_id in ("a", "b", "a", "c"):
        ids.add(call_id)
    assert ("a" in ids, "b" in ids, "c" in ids) == (True, False, True)


def test_ids_are_forgotten_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    ids = RecentIds(3, seconds=30)
    ids.add("a")
    now = 1020.0
    ids.add("b")
    assert (ids.since("a"), ids.since("b"), ids.since("c")) == (1_000_000, 1_020_000, None)
    now = 1031.0
    ids.add("c")
    assert ("a" in ids, "b" in ids, len(ids)) == (False, True, 2)
    assert ids.forgotten_ms == 0, "nothing was forgotten before its time"
    for call_id in "defg":
        ids.add(call_id)
    assert (len(ids), ids.forgotten_ms) == (3, 1_031_000)


def test_recent_replies_are_bounded_in_number() -> None:
    replies = RecentReplies(size=2)
    kept = [reply(1) for _ in range(4)]
    for number, item in enumerate(kept):
        replies.add(str(number), item)
    assert len(replies) == 2
    assert [replies.get(str(number)) for number in range(4)] == [None, None, *kept[2:]]


def test_recent_replies_are_bounded_in_bytes() -> None:
    replies = RecentReplies(max_bytes=100)
    for number in range(10):
        replies.add(str(number), reply(40))
    assert len(replies) == 2
    replies.add("big", reply(100))
    assert len(replies) == 1
    assert replies.get("big") is not None


def test_a_reply_over_the_bound_is_not_kept() -> None:
    replies = RecentReplies(max_bytes=100)
    replies.add("small", reply(1))
    replies.add("huge", reply(101))
    assert replies.get("huge") is None
    replies.add("next", reply(100))
    assert replies.get("next") is not None


def test_the_same_id_again_is_counted_once() -> None:
    replies = RecentReplies(max_bytes=100)
    for size in (60, 80, 90):
        replies.add("same", reply(size))
    assert len(replies) == 1
    replies.add("other", reply(10))
    assert len(replies) == 2


def test_whose_a_call_was_is_known_as_long_as_its_reply() -> None:
    replies = RecentReplies(size=2)
    replies.add("hers", reply(1), "shop")
    replies.add("nobody's", reply(1))
    assert [replies.owner(call_id) for call_id in ("hers", "nobody's", "other")] == ["shop", "", None]
    replies.add("nobody's", reply(1), "thief")
    replies.add("nobody's", reply(1))
    assert replies.owner("nobody's") == ""
    replies.add("third", reply(1), "shop")
    assert [replies.owner(call_id) for call_id in ("hers", "third")] == [None, "shop"]
    assert list(replies._owners) == ["nobody's"]
    assert [replies.has_any(ids) for ids in ([], ["hers", "other"], ["other", "third"])] == [False, False, True]


def test_owners_are_right_whoever_calls_in_whichever_order() -> None:
    chance = random.Random(2)
    for size in (1, 2, 7):
        replies, owners = RecentReplies(size), OrderedDict[str, str]()
        for _ in range(500):
            # Texts of their own: those that travel are no constants.
            call_id, owner = str(chance.randrange(12)), "".join(chance.choice((["sh", "op"], ["web"], [])))
            replies.add(call_id, reply(1), owner)
            owners[call_id] = owner
            owners.move_to_end(call_id)
            while len(owners) > size:
                owners.popitem(last=False)
            names = map(str, range(12))
            assert {name: replies.owner(name) for name in names if replies.get(name)} == owners
            assert set(replies._owners) <= set(owners)


def test_random_use_never_exceeds_the_bounds() -> None:
    chance = random.Random(1)
    replies = RecentReplies(size=20, max_bytes=1000)
    sizes: dict[str, int] = {}
    for _ in range(5000):
        call_id = str(chance.randrange(60))
        sizes[call_id] = chance.randrange(300)
        replies.add(call_id, reply(sizes[call_id]))
        held = [call_id for call_id in sizes if replies.get(call_id) is not None]
        assert len(held) == len(replies) <= 20
        assert sum(sizes[call_id] for call_id in held) == replies._bytes <= 1000
