"""`OtherWorkers`: what a look for other workers is believed to say, and of what."""

from __future__ import annotations

from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError

from atasks.transport.backends.amqp.worker.other_workers import OtherWorkers


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
    assert await others.beyond("solo", 1)
    assert link.looks == 1
