"""Calls that may begin later: queues that hold a message for a while, one behind the other.

A delay is a number of ticks, in binary. There is a level for each digit: a queue that holds a message for as many
ticks as the digit stands for, and an exchange before it that hands the message to this queue if its digit is 1,
and past it if it is 0. What a queue lets go, goes to the exchange of the next level, and behind the last one to
that of what is due. One queue for all would not do: RabbitMQ lets a message go when it is at the head of its
queue only.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final

from pamqp.commands import Basic

from atasks.transport.backends.amqp.broker.questions import guard, shielded

if TYPE_CHECKING:
    from aiormq.channel import Channel

    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.broker.topology import Topology

__all__ = ["LEVELS", "bind_when_due", "declare_levels", "due_key", "level_of", "ticks_of", "was_delayed"]

TICK_MS: Final = 100
LEVELS: Final = 26
"""77 days in all. RabbitMQ counts the milliseconds of a queue in 32 bits."""


def due_key(ticks: int, work: str) -> str:
    """The routing key of a message for this work queue that is delayed by so many ticks."""
    digits = ".".join(str(ticks >> level & 1) for level in reversed(range(LEVELS)))
    return f"{digits}.{_name(work)}"


def ticks_of(seconds: float) -> int:
    """So many ticks are not less than this time, and not a whole one more."""
    ticks = math.ceil(seconds * 1000 / TICK_MS)
    return min(max(ticks, 0), (1 << LEVELS) - 1)


def level_of(ticks: int) -> int:
    """The highest level that holds the message; -1: none does."""
    return ticks.bit_length() - 1


async def declare_levels(link: Link, topology: Topology, top: int) -> None:
    """Declare the levels up to this one, and the exchanges of what is due. Raises one of `CLIENT_ERRORS`."""
    async with link.aside() as channel:
        await _declare_due(channel, topology)
        for level in range(top + 1):
            name, behind = topology.delay(level), topology.delay(level - 1) if level else topology.due
            arguments: dict[str, Any] = {
                "x-queue-type": "classic",
                "x-message-ttl": TICK_MS << level,
                "x-dead-letter-exchange": behind,
            }
            skipped = "*." * (LEVELS - 1 - level)
            await guard(shielded(channel.exchange_declare(name, exchange_type="topic", durable=True)))
            await guard(shielded(channel.queue_declare(name, durable=True, arguments=arguments)))
            await guard(shielded(channel.queue_bind(name, name, f"{skipped}1.#")))
            await guard(shielded(channel.exchange_bind(behind, name, f"{skipped}0.#")))


async def bind_when_due(link: Link, topology: Topology, queue: str, *, early: bool) -> None:
    """Have what is due for a work queue come to it; `early`: to the queue beside it, as long as it does not."""
    async with link.aside() as channel:
        await _declare_due(channel, topology)
        work = topology.work(queue)
        name, exchange = (topology.early(queue), topology.due_early) if early else (work, topology.due)
        await guard(shielded(channel.queue_bind(name, exchange, f"#.{_name(work)}")))


async def _declare_due(channel: Channel, topology: Topology) -> None:
    early = topology.due_early
    await guard(shielded(channel.exchange_declare(early, exchange_type="topic", durable=True)))
    await guard(
        shielded(
            channel.exchange_declare(
                topology.due, exchange_type="topic", durable=True, arguments={"alternate-exchange": early}
            )
        )
    )


def was_delayed(properties: Basic.Properties) -> bool:
    """Return True if the broker has moved the message from one queue to another, as it does with delayed ones."""
    deaths = (properties.headers or {}).get("x-death")
    return isinstance(deaths, list) and bool(deaths)


def _name(work: str) -> str:
    """The work queue in a routing key: in one word, and no pattern."""
    return hashlib.sha256(work.encode()).hexdigest()[:32]
