"""Queues of a hub that are looked at, paused and purged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from atasks.errors import TransportError
from atasks.options import validate_queue
from atasks.tracking.steering import Purged
from atasks.transport.backends.local.messages import Answer, QueueState, Steer
from atasks.transport.backends.local.records import LocalRecords

__all__ = ["Steering"]


class Steering:
    """Asks the hub for the states of queues, and has it pause, resume and purge them."""

    def __init__(self, records: LocalRecords) -> None:
        self._records = records

    async def steer(self, queue: str, order: Literal["look", "pause", "resume", "purge"]) -> QueueState:
        """Have the hub do this with a queue. Raises TransportError."""
        name = validate_queue(queue)
        answer = await self._records.ask(lambda number: Steer(number, name, order))
        if not isinstance(answer, QueueState):
            raise TransportError(
                answer.reason
                if isinstance(answer, Answer)
                else "the hub gave another answer than the state of a queue: report it as a fault of atasks"
            )
        return answer

    async def paused(self, queues: Sequence[str]) -> list[str]:
        """Return those of the queues that are paused."""
        return [queue for queue in queues if (await self.steer(queue, "look")).paused]

    async def purge(self, queue: str) -> Purged:
        """End the calls that wait in a queue."""
        state = await self.steer(queue, "purge")
        known = bool(state.purged or state.waiting or state.workers or state.paused)
        return Purged(state.purged, known=known)

    async def states(self, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return how many calls wait, and how many workers serve, by queue, of those that the hub has."""
        states = {queue: await self.steer(queue, "look") for queue in queues}
        return {
            queue: (state.waiting, state.workers)
            for queue, state in states.items()
            if state.waiting or state.workers or state.paused
        }
