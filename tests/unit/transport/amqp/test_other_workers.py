"""`OtherWorkers`: what a look for other workers is believed to say, and of what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError

from atasks.transport.backends.amqp.worker.other_workers import KNOWN_SECONDS, LOOKS, OtherWorkers


class _Link:
    def __init__(self, consumers: int | None) -> None:
        """`consumers`: those of each queue; None: the link is lost."""
        self.consumers = consumers
        self.looks = 0

    async def queue_state(self, name: str) -> tuple[int, int]:
        self.looks += 1
        if self.consumers is None:
            raise ChannelInvalidStateError
        return 0, self.consumers


@pytest.mark.parametrize("lost", [None, _Link(None)], ids=["no link", "a link that gets lost"])
async def test_a_look_that_failed_says_nothing_of_the_next_link(lost: _Link | None) -> None:
    """Calls that came over that link ended in UnknownTask, beside the worker that has their atask."""
    link: Any = lost
    others = OtherWorkers(lambda: link)
    assert not await others.beyond("solo", 1)
    link = _Link(2)
    assert await others.beyond("solo", 1)


async def test_a_worker_that_starts_after_a_look_is_seen_by_the_next_call() -> None:
    link: Any = _Link(1)
    others = OtherWorkers(lambda: link)
    assert not await others.beyond("solo", 1)
    link.consumers = 2
    assert await others.beyond("solo", 1)


async def test_many_calls_at_a_time_believe_what_the_first_ones_saw() -> None:
    """For half a second, though a worker is missed that starts then; and no longer."""
    link: Any = _Link(1)
    others = OtherWorkers(lambda: link)
    assert not any(await asyncio.gather(*(others.beyond("solo", 1) for _ in range(1000))))
    assert link.looks == 2 * LOOKS
    link.consumers = 2
    await asyncio.sleep(KNOWN_SECONDS)
    assert await others.beyond("solo", 1)
