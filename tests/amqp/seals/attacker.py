"""An attacker of sealed calls: it makes messages by hand, under whatever key."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import aio_pika
import msgspec
import pytest

from atasks import Transport
from atasks.signing import CONTENT_TYPE, Key, Kind, keyfile, seal, unseal
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.peer import Peer
from tests.keys import KeyFiles

__all__ = [
    "ASK",
    "CALL",
    "CANCEL",
    "CLAIM",
    "CREDIT",
    "DECODE_ERROR",
    "END",
    "GRANT",
    "HELD",
    "ITEM",
    "KEPT",
    "REPLY",
    "UP",
    "VALUE",
    "Attacker",
    "call",
    "decode",
    "echo_body",
    "encode",
    "fields",
    "forged",
    "other_keys",
    "over_both",
    "ran",
    "refused",
    "running",
    "task_of",
]

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode

CALL, REPLY, CANCEL, ASK, HELD, UP, CREDIT, ITEM, END, KEPT, CLAIM, GRANT = range(1, 13)
VALUE, DECODE_ERROR = 0, 7


over_both = pytest.mark.parametrize("queue_type", ["classic", "quorum"], indirect=True)
"""For attacks at work queues, which differ in what they say of a message that comes again."""


class Attacker:
    """A peer that can seal, with whatever key it is given."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    @property
    def control(self) -> str:
        return f"{self.peer.prefix}.control"

    async def publish(
        self,
        body: bytes,
        to: str,
        key: Key | None,
        kind: Kind = "request",
        *,
        exchange: str = "",
        destination: str | None = None,
        reply_to: str | None = None,
        message_id: str | None = None,
        issued: float | None = None,
        copies: list[str] | None = None,
    ) -> aio_pika.Message:
        """Send a body to a queue or a routing key, under the seal of a key; None: without one. `copies`: queues
        that get it too."""
        message_id = message_id or uuid.uuid4().hex
        reply_to = self.peer.replies.name if reply_to is None else reply_to
        place = destination or (f"{exchange} {to}" if exchange else to)
        at = int((time.time() if issued is None else issued) * 1000)
        if key is not None:
            body = seal(key, body, at, kind, place, reply_to, message_id)
        content_type = "application/vnd.atasks.v1+msgpack" if key is None else CONTENT_TYPE
        headers: Any = {"CC": copies} if copies else None
        message = aio_pika.Message(
            body, content_type=content_type, reply_to=reply_to, message_id=message_id, headers=headers
        )
        await self.publish_again(message, to, exchange)
        return message

    async def publish_again(self, message: aio_pika.Message, to: str, exchange: str = "") -> None:
        """Send a message as it was recorded."""
        channel = self.peer.channel
        target = await channel.get_exchange(exchange) if exchange else channel.default_exchange
        await target.publish(message, to, mandatory=False)

    async def call(self, key: Key | None, task: str, *args: Any, fields: tuple[Any, ...] = (), **how: Any) -> str:
        """Send a request to the default queue; its id."""
        call_id = uuid.uuid4().hex
        body = encode([[CALL, 1, call_id, task, encode([list(args), {}]), "msgpack", *fields]])
        await self.publish(body, self.peer.work_queue(), key, **how)
        return call_id

    async def say(self, key: Key | None, envelope: list[Any], to: str, **how: Any) -> None:
        """Send a control message."""
        await self.publish(encode([envelope]), to, key, "control", exchange=self.control, **how)

    async def answer(self, key: Key) -> list[Any]:
        """The next envelopes for this peer, which have to be sealed with that key."""
        message = await soon(self.peer.unread.get())
        assert message.content_type == CONTENT_TYPE
        place = self.peer.replies.name
        covered = message.reply_to or "", message.message_id or ""
        *_, body = unseal({key.name: key}.get, message.body, "reply", place, *covered)
        found: list[Any] = decode(body)
        return found


def fields(by: str = "", attempt: int = 1, max_attempts: int = 3, delivery: int = 0) -> tuple[Any, ...]:
    """Those of a Call behind its codec, down to `by`."""
    return (None, 0, attempt, max_attempts, delivery, 0, None, None, None, 0, None, None, False, by)


def refused(transport: Transport) -> dict[str, int]:
    assert isinstance(transport, AMQPTransport)
    assert transport.session.seals is not None
    return dict(transport.session.seals.refused)


def forged(name: str) -> Key:
    """A key of a name that is known, with a secret that is not."""
    return keyfile.parse(keyfile.new_line(name, "serve"), name)[0]


def ran(site: Site) -> list[Any]:
    """The notes of the site's atasks."""
    found: list[Any] = site.ran  # type: ignore[attr-defined]
    return found


def task_of(site: Site, name: str) -> Any:
    item = site.router.registry.get(name)
    assert item is not None
    return item.task


async def call(site: Site, name: str, *args: Any, **options: Any) -> Any:
    """Await an atask of the site."""
    return await soon(task_of(site, name).options(**options)(*args))


async def running(site: Site) -> tuple[asyncio.Task[Any], str]:
    """A call of the site's caller that runs, and its id."""
    task = asyncio.create_task(task_of(site, "forever")())
    await until(lambda: "forever" in ran(site))
    return task, site.worker.runs[0].call.id


def other_keys(keys: KeyFiles) -> dict[str, Key | None]:
    """The keys of processes that are neither the call's owner nor a worker."""
    return {"none": None, "stranger": forged("stranger"), "forged": forged("w"), "thief": keys.key("thief")}


echo_body = encode([[CALL, 1, "an-id", "echo", encode([[1], {}]), "msgpack"]])
