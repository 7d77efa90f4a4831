"""Replies that came when nobody awaited them are kept within bounds."""

from __future__ import annotations

from atasks.transport.backends.amqp.late_replies import MAX_BYTES, MAX_REPLIES, LateReplies
from atasks.wire import VERSION, Reply


def reply(number: int, size: int = 1) -> Reply:
    return Reply(VERSION, f"call-{number}", 0, bytes(size), "pickle", "worker")


def test_the_oldest_go_where_there_are_too_many() -> None:
    late = LateReplies()
    for number in range(MAX_REPLIES + 1):
        late.add(reply(number))
    assert late.get("call-0") is None
    assert late.get("call-1") == reply(1)
    assert late.get(f"call-{MAX_REPLIES}") is not None


def test_the_oldest_go_where_they_are_too_large() -> None:
    late = LateReplies()
    for number in range(3):
        late.add(reply(number, MAX_BYTES // 2))
    assert [late.get(f"call-{number}") is None for number in range(3)] == [True, False, False]
    late.clear()
    assert late.get("call-2") is None
    late.add(reply(3, MAX_BYTES))
    assert late.get("call-3") is not None


def test_the_first_reply_to_a_call_is_kept() -> None:
    late = LateReplies()
    late.add(reply(1, 1))
    late.add(reply(1, 2))
    assert late.get("call-1") == reply(1, 1)
