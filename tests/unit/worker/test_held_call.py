"""A held call remembers the call that it awaited."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from atasks.wire import VERSION, Call, Reply, Status
from atasks.worker.held_call import HeldCall


def held(deadline: float | None) -> tuple[HeldCall, Call]:
    """Return a call with such a deadline, in seconds from now, and the call that it awaits."""
    loop = asyncio.get_running_loop()
    parent = Call(VERSION, "the-parent", "shop.order", b"", "pickle")
    unused = cast("Any", None)  # neither the worker nor its counters have a part in this
    run = HeldCall(unused, parent, (), loop, None, unused)
    run.deadline = None if deadline is None else loop.time() + deadline
    run.last_awaited = call = Call(VERSION, "the-nested", "shop.pay", b"", "pickle")
    return run, call


@pytest.mark.parametrize(
    ("deadline", "status", "stays"),
    [
        (0.001, Status.TIMED_OUT, True),
        (-0.01, Status.TIMED_OUT, True),
        (10, Status.TIMED_OUT, False),
        (None, Status.TIMED_OUT, False),
        (0.001, Status.VALUE, False),
        (0.001, Status.RAISED, False),
    ],
)
async def test_a_call_that_ended_at_the_same_deadline_stays(
    deadline: float | None, status: int, stays: bool
) -> None:
    run, call = held(deadline)
    run.answered(call, Reply(VERSION, call.id, status, b""))
    assert run.awaited == (("the-nested", "shop.pay") if stays else None)


async def test_another_call_that_is_awaited_by_now_stays() -> None:
    run, call = held(None)
    run.last_awaited = Call(VERSION, "the-next", "shop.ship", b"", "pickle")
    run.answered(call, Reply(VERSION, call.id, Status.VALUE, b""))
    assert run.awaited == ("the-next", "shop.ship")
