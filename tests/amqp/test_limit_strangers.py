"""Messages of strangers among the tokens of a limit, and operators who take tokens: who waits goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aio_pika import Message

import atasks
from atasks import Limit, atask
from atasks.testing import soon
from tests.amqp.peer import Peer

pytestmark = pytest.mark.usefixtures("amqp_leaks")

STRANGERS: list[dict[str, Any]] = [
    {"body": b""},
    {"body": b"junk" * 1000, "message_id": "token"},
    {"body": b"", "message_id": "token", "headers": {"x-death": 5}},
    {"body": b"", "message_id": "token", "headers": {"x-death": [5]}},
    {"body": b"", "message_id": "token", "headers": {"x-death": [{"queue": 5, "reason": "rejected"}]}},
    {"body": b"", "message_id": "token", "headers": {"x-death": [{}], "CC": ["a"]}},
    {"body": b"", "message_id": "t" * 255, "content_type": "\u20ac" * 80, "priority": 255, "user_id": "guest"},
]


@atask
async def double(x: int) -> int:
    return 2 * x


async def test_what_is_no_token_is_dropped(amqp_url: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A token that is spent is moved by the broker, which loses the queue over some headers, and then closes the
    connection of whoever uses it."""
    limit = Limit("bank", at_once=2, per_second=50)
    inside = most = 0

    async def hold() -> None:
        nonlocal inside, most
        async with limit:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.05)  # so long that the two places, and not the rate, decide how many there are
            inside -= 1

    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        await hold()
        for kind in ("places", "rate"):
            for stranger in STRANGERS:
                message = Message(**stranger)
                await peer.channel.default_exchange.publish(message, f"{prefix}.limit.default.bank.{kind}")
        await soon(asyncio.gather(*(hold() for _ in range(80))))
        assert await soon(double(2)) == 4
    assert most == 2
    assert not [record for record in caplog.records if "is lost" in record.message]


async def test_tokens_that_were_purged_are_there_again_when_the_definition_is_deleted(
    amqp_url: str, prefix: str
) -> None:
    limit = Limit("bank", at_once=2, per_second=50)
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        async with limit:
            pass
        for kind in ("places", "rate", "cooling"):
            await (await peer.channel.get_queue(f"{prefix}.limit.default.bank.{kind}")).purge()
        waiting = asyncio.create_task(limit.take())
        assert await soon(double(2)) == 4
        assert not waiting.done()
        definition = await peer.channel.get_queue(f"{prefix}.limit.default.bank")
        await definition.delete(if_unused=False, if_empty=False)
        (await soon(waiting)).release()
