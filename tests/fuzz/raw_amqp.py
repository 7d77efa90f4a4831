"""A publisher that writes AMQP frames by hand: properties that no client library would send, too."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame, header
from pamqp.heartbeat import Heartbeat

from tests.fuzz.mutations import Mutations

__all__ = ["RawPublisher", "Refused", "odd_properties", "usual_properties"]

MAX_FRAME: Final = 131_072


class Refused(Exception):
    """The broker closed the channel or the connection."""


class RawPublisher:
    """A connection with one channel, blocking."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._user, self._password = unquote(address.username or "guest"), unquote(address.password or "guest")
        self._vhost = unquote(address.path[1:]) or "/"
        self._socket = socket.create_connection((address.hostname, address.port or 5672), timeout=30)
        self._buffer = b""
        try:
            self._open()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def publish(self, exchange: str, key: str, body: bytes, properties: bytes) -> None:
        """`properties`: flags and values, as they stand in the content header of AMQP 0-9-1."""
        self._send(1, frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=key), 1))
        head = struct.pack(">HHQ", 60, 0, len(body)) + properties
        parts = [_frame(2, head)]
        step = MAX_FRAME - 8
        parts += [_frame(3, body[at : at + step]) for at in range(0, len(body), step)]
        self._send(1, b"".join(parts))

    def settle(self) -> None:
        """Return when the broker has taken everything. Raises Refused if it closed the channel."""
        self._send(1, frame.marshal(commands.Basic.Qos(prefetch_count=1), 1))
        self._expect(commands.Basic.QosOk)

    def _open(self) -> None:
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect(commands.Connection.Start)
        response = f"\0{self._user}\0{self._password}"
        self._send(0, frame.marshal(commands.Connection.StartOk({}, "PLAIN", response, "en_US"), 0))
        tune = self._expect(commands.Connection.Tune)
        self._send(0, frame.marshal(commands.Connection.TuneOk(tune.channel_max, MAX_FRAME, 0), 0))
        self._send(0, frame.marshal(commands.Connection.Open(self._vhost), 0))
        self._expect(commands.Connection.OpenOk)
        self._send(1, frame.marshal(commands.Channel.Open(), 1))
        self._expect(commands.Channel.OpenOk)

    def _send(self, channel: int, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Refused(str(error)) from error

    def _expect(self, kind: type[Any]) -> Any:
        while True:
            while True:
                if self._buffer:
                    size, _, found = frame.unmarshal(self._buffer)
                    if size:
                        break
                try:
                    data = self._socket.recv(65_536)
                except OSError as error:
                    raise Refused(str(error)) from error
                if not data:
                    raise Refused("the connection was closed")
                self._buffer += data
            self._buffer = self._buffer[size:]
            if isinstance(found, kind):
                return found
            if isinstance(found, commands.Channel.Close | commands.Connection.Close):
                raise Refused(found.reply_text)
            assert isinstance(found, Heartbeat | header.ContentHeader | commands.Basic.Return), found


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHL", kind, 1, len(payload)) + payload + b"\xce"


CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE, PRIORITY, CORRELATION_ID, REPLY_TO = range(15, 8, -1)
EXPIRATION, MESSAGE_ID, TIMESTAMP, TYPE, USER_ID, APP_ID, CLUSTER_ID = range(8, 1, -1)


def odd_properties(dice: Mutations, reply_to: str, message_id: str, content_type: str) -> bytes:
    """Properties with valid lengths: the usual ones, some of them with values that nobody expects."""
    found = _usual(reply_to, message_id, content_type)
    for _ in range(dice.choice((0, 0, 1, 1, 2, 4))):
        match dice.randrange(8):
            case 0:
                found[TIMESTAMP] = struct.pack(
                    ">Q", dice.choice((0, 2**40, 1_790_000_000_000_000, 2**63, 2**64 - 1))
                )
            case 1:
                found[HEADERS] = _long(_table(dice, 0))
            case 2:
                found[HEADERS] = _long(_deep(dice.choice((50, 500, 2000))))
            case 3:
                found[HEADERS] = _long(_short(dice.choice((b"x", b"\xff\xfe", b""))) + b"S" + _long(b"\xff" * 10))
            case 4:
                found[PRIORITY] = bytes([dice.randrange(256)])
            case 5:
                found.pop(dice.choice((CONTENT_TYPE, REPLY_TO, MESSAGE_ID, DELIVERY_MODE)), None)
            case _:
                odd = dice.choice(
                    (b"", b"\xff\xfe\xfd", b"x" * 255, "é☃".encode(), b"a\nb", b"\0", b"atasks.dead")
                )
                found[
                    dice.choice(
                        (CONTENT_TYPE, CONTENT_ENCODING, CORRELATION_ID, REPLY_TO, MESSAGE_ID, TYPE, APP_ID)
                    )
                ] = _short(odd)
    return _packed(found)


def usual_properties(reply_to: str, message_id: str, content_type: str) -> bytes:
    """Those of a message that a program sends."""
    return _packed(_usual(reply_to, message_id, content_type))


def _usual(reply_to: str, message_id: str, content_type: str) -> dict[int, bytes]:
    return {
        CONTENT_TYPE: _short(content_type.encode()),
        REPLY_TO: _short(reply_to.encode()),
        MESSAGE_ID: _short(message_id.encode()),
        DELIVERY_MODE: b"\x02",
    }


def _packed(found: dict[int, bytes]) -> bytes:
    flags = 0
    for bit in found:
        flags |= 1 << bit
    return struct.pack(">H", flags) + b"".join(found[bit] for bit in sorted(found, reverse=True))


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _long(content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + content


def _table(dice: Mutations, depth: int) -> bytes:
    entries = []
    for _ in range(dice.randrange(4)):
        keys = (b"k", b"", b"\xff", b"traceparent", b"x" * 128)
        key = dice.choice((*keys, b"x-death") if dice.tells_of_deaths else keys)
        entries.append(_short(key) + _field(dice, depth))
    return b"".join(entries)


def _field(dice: Mutations, depth: int) -> bytes:
    match dice.randrange(10 if depth < 4 else 8):
        case 0:
            return b"t" + bytes([dice.randrange(2)])
        case 1:
            return b"l" + dice.randbytes(8)
        case 2:
            return b"S" + _long(dice.randbytes(dice.choice((0, 5, 300))))
        case 3:
            return b"T" + dice.randbytes(8)
        case 4:
            return b"d" + dice.randbytes(8)
        case 5:
            return b"V"
        case 6:
            return b"x" + _long(dice.randbytes(5))
        case 7:
            return b"D" + dice.randbytes(5)
        case 8:
            return b"F" + _long(_table(dice, depth + 1))
        case _:
            return b"A" + _long(b"".join(_field(dice, depth + 1) for _ in range(dice.randrange(3))))


def _deep(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = b"A" + _long(content)
    return _short(b"deep") + content
