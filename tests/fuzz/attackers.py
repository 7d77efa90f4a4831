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
from collections.abc import Iterator
from typing import Final

import msgspec

from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.messages import PROTOCOL, Hello
from tests.fuzz.mutations import Mutations
from tests.fuzz.raw_amqp import RawPublisher, Refused, odd_properties
from tests.fuzz.samples import ENVELOPES, FRAMES, NAMESPACE, TABLES

__all__ = ["broker", "hub"]

SETTLE_EVERY: Final = 200
"""Hostile messages between two looks at whether the broker has closed the channel."""


def broker(url: str, seed: int, targets: list[tuple[str, str]], addresses: list[str]) -> Iterator[bool]:
    """Send messages to these exchanges and routing keys, for answers to these addresses. Each item is true for a
    message that was sent, and false for a connection that was refused."""
    dice = Mutations(seed, [*ENVELOPES, *(msgspec.msgpack.encode((5, table)) for table in TABLES)])
    publisher: RawPublisher | None = None
    try:
        while True:
            try:
                publisher = publisher or RawPublisher(url)
                for _ in range(SETTLE_EVERY):
                    exchange, key = dice.choice(targets)
                    properties = odd_properties(dice, dice.choice(addresses))
                    publisher.publish(exchange, key, dice.body(), properties)
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
