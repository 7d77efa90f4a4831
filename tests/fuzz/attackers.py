"""Hostile messages by the thousand: `python -m tests.fuzz.attackers broker|hub JSON`.

They come from a process of their own: good calls that shared its interpreter would wait for that, and not for the
worker. Each line of output says how many messages were sent so far, and how many connections were refused.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from atasks import wire
from atasks.signing import CONTENT_TYPE, Key, keyfile, seal
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.messages import PROTOCOL, Hello
from tests.fuzz.mutations import Mutations
from tests.fuzz.raw_amqp import RawPublisher, Refused, odd_properties, usual_properties
from tests.fuzz.samples import ENVELOPES, FRAMES, NAMESPACE, TABLES

__all__ = ["broker", "hub"]

SETTLE_EVERY: Final = 200
"""Hostile messages between two looks at whether the broker has closed the channel."""


def broker(
    url: str, seed: int, targets: list[tuple[str, str]], addresses: list[str], prefix: str, lines: list[str]
) -> Iterator[bool]:
    """Send messages to these exchanges and routing keys, for answers to these addresses. Each item is true for a
    message that was sent, and false for a connection that was refused. `lines`: the keys that the attacker has."""
    dice = Mutations(seed, [*ENVELOPES, *(msgspec.msgpack.encode((5, table)) for table in TABLES)])
    sealing = Sealing(dice, Topology(prefix, NAMESPACE), [keyfile.parse(line, "")[0] for line in lines])
    publisher: RawPublisher | None = None
    try:
        while True:
            try:
                publisher = publisher or RawPublisher(url)
                for _ in range(SETTLE_EVERY):
                    publisher.publish(*sealing.message(*dice.choice(targets), dice.choice(addresses)))
                    yield True
                publisher.settle()
            except Refused:
                if publisher is not None:
                    publisher.close()
                publisher = None
                yield False
    finally:
        if publisher is not None:
            publisher.close()


class Sealing:
    """Hostile messages, most of them under a seal if there are keys: a right one, a wrong one, half of one, an old
    one, and one that came before."""

    def __init__(self, dice: Mutations, topology: Topology, keys: list[Key]) -> None:
        self._dice = dice
        self._topology = topology
        self._keys = keys
        self._sent: deque[tuple[str, str, bytes, bytes]] = deque(maxlen=50)

    def message(self, exchange: str, key: str, reply_to: str) -> tuple[str, str, bytes, bytes]:
        """The exchange, the routing key, the body and the properties."""
        dice = self._dice
        dice.tells_of_deaths = not any(".delay." in name for name in (exchange, key))
        message_id = f"m{dice.getrandbits(64):x}"
        body = dice.body()
        place = self._topology.place(exchange, key)
        if not self._keys or place is None or dice.random() < 0.2:
            return exchange, key, body, odd_properties(dice, reply_to, message_id, wire.CONTENT_TYPE)
        if self._sent and dice.random() < 0.1:
            return dice.choice(self._sent)
        issued = int(time.time() * 1000)
        match dice.randrange(10):
            case 0:
                issued = dice.choice((0, issued - 3_600_000, issued + 3_600_000, 2**64 - 1))
            case 1:
                place = dice.choice(((place[0], f"{place[1]}."), ("record", place[1]), ("reply", place[1])))
        body = seal(dice.choice(self._keys), body, issued, *place, reply_to, message_id)
        match dice.randrange(10):
            case 0:
                body = body[: dice.randrange(100)]
            case 1:
                at = dice.randrange(min(len(body), 60))
                body = body[:at] + dice.randbytes(1) + body[at + 1 :]
        if dice.random() < 0.1:
            properties = odd_properties(dice, reply_to, message_id, CONTENT_TYPE)
        else:
            properties = usual_properties(reply_to, message_id, CONTENT_TYPE)
        message = exchange, key, body, properties
        self._sent.append(message)
        return message


def hub(path: str, seed: int) -> Iterator[bool]:
    """Send frames to the hub at this path; the items as for `broker`."""
    dice = Mutations(seed, FRAMES)
    link: socket.socket | None = None
    try:
        while True:
            try:
                if link is None:
                    link = socket.socket(socket.AF_UNIX)
                    link.settimeout(5)
                    link.connect(path)
                    if dice.random() < 0.8:
                        link.sendall(_framed(encode([Hello(PROTOCOL, NAMESPACE, os.getpid())])))
                frame = _framed(dice.body())
                if dice.random() < 0.02:
                    frame = dice.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", frame[:7], dice.randbytes(9))) + frame
                link.sendall(frame)
                yield True
                if dice.random() < 0.02:
                    raise ConnectionError  # leave, as a process does that is killed
                while select.select([link], [], [], 0)[0]:
                    if not link.recv(65_536):
                        raise ConnectionError
            except (OSError, TimeoutError):
                if link is not None:
                    link.close()
                link = None
                yield False
    finally:
        if link is not None:
            link.close()


def _framed(body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + body


def main(kind: str, said: str) -> None:
    """Send so many messages, for at most so many seconds, and tell of them."""
    arguments = json.loads(said)
    messages, until = arguments.pop("messages"), time.monotonic() + arguments.pop("seconds")
    sent = refused = 0
    for is_sent in {"broker": broker, "hub": hub}[kind](**arguments):
        sent += is_sent
        refused += not is_sent
        if sent % SETTLE_EVERY == 0 or sent == messages:
            print(json.dumps((sent, refused)), flush=True)
        if sent == messages or time.monotonic() > until:
            break
    print(json.dumps((sent, refused)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
