"""Messages that nobody should send: valid ones with something changed, and some that never were valid."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

__all__ = ["Mutations"]

ODD_NUMBERS: Final = (
    -1,
    0,
    1,
    63,
    64,
    65,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
)
ODD_FLOATS: Final = (float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 5e-324)
ODD_TEXTS: Final = (
    "",
    "x" * 65,
    "x" * 5000,
    "\0",
    "\n\x1b[2J",
    "é",
    "\U0001f600" * 64,
    "atasks",
    "../..",
    "%s%n{0}",
)
DEEP: Final = 3000
"""Arrays in arrays, in a value that is nested deeply."""


class Mutations(random.Random):
    """A source of hostile bytes. The same seed gives the same ones."""

    tells_of_deaths = True
    """False: no message has an `x-death`. RabbitMQ 3.10 loses a classic queue that dead-letters a message with an
    odd one."""

    def __init__(self, seed: int, samples: Sequence[bytes]) -> None:
        super().__init__(seed)
        self._samples = list(samples)
        self._ways: list[Callable[[bytes], bytes]] = [
            self._with_odd_values,
            self._with_odd_values,
            self._with_odd_values,
            self._flipped,
            self._cut,
            self._spliced,
            self._repeated,
            self._grown,
            lambda _: self.randbytes(self.choice((0, 1, 10, 300))),
            lambda _: b"\x91" * self.choice((100, 2000, 50_000)) + b"\xc0",
            lambda _: b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1, of which nothing follows
            lambda _: b"\xdc\xff\xff" + b"\x90" * 65_535,  # an array of empty arrays
            lambda _: self._array_of_many(),
        ]

    def body(self) -> bytes:
        """The body of a message, at most a few hundred KiB."""
        body = self.choice(self._ways)(self.choice(self._samples))
        return self.choice(self._ways)(body) if self.random() < 0.2 and len(body) < 10_000 else body

    def value(self, depth: int = 0) -> Any:
        """Something that MessagePack takes."""
        kinds: list[Callable[[], Any]] = [
            lambda: self.choice(ODD_NUMBERS),
            lambda: self.choice(ODD_FLOATS),
            lambda: self.choice(ODD_TEXTS),
            lambda: self.choice(ODD_TEXTS).encode(),
            lambda: self.randbytes(self.choice((0, 3, 100))),
            lambda: None,
            lambda: self.random() < 0.5,
            lambda: msgspec.msgpack.Ext(self.choice((-1, 0, 5, 127)), self.randbytes(self.choice((0, 4, 12)))),
        ]
        if depth < 3:
            kinds.append(lambda: [self.value(depth + 1) for _ in range(self.choice((0, 1, 2, 5)))])
            kinds.append(lambda: {str(n): self.value(depth + 1) for n in range(self.choice((0, 1, 3)))})
            kinds.append(lambda: msgspec.Raw(b"\x91" * DEEP + b"\xc0"))
        return self.choice(kinds)()

    def _with_odd_values(self, body: bytes) -> bytes:
        """Other values at random places of the structure."""
        try:
            found = msgspec.msgpack.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return self._flipped(body)
        for _ in range(self.choice((1, 1, 2, 4))):
            found = self._changed(found)
        try:
            return msgspec.msgpack.encode(found)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return body

    def _changed(self, value: Any) -> Any:
        if isinstance(value, list) and value and self.random() < 0.9:
            at = self.randrange(len(value))
            match self.randrange(6):
                case 0:
                    return value[:at]
                case 1:
                    return [*value, self.value()]
                case 2:
                    return [*value[:at], *value[at + 1 :]]
                case _:
                    return [*value[:at], self._changed(value[at]), *value[at + 1 :]]
        if isinstance(value, dict) and value and self.random() < 0.7:
            key = self.choice(list(value))
            return {**value, key: self._changed(value[key])}
        if isinstance(value, bytes) and value and self.random() < 0.5:
            return self._flipped(value)
        return self.value()

    def _flipped(self, body: bytes) -> bytes:
        changed = bytearray(body)
        for _ in range(self.choice((1, 1, 3, 10))):
            if changed:
                changed[self.randrange(len(changed))] = self.randrange(256)
        return bytes(changed)

    def _cut(self, body: bytes) -> bytes:
        at = self.randrange(len(body) + 1)
        return body[:at] if self.random() < 0.7 else body[at:]

    def _spliced(self, body: bytes) -> bytes:
        other = self.choice(self._samples)
        return body[: self.randrange(len(body) + 1)] + other[self.randrange(len(other) + 1) :]

    def _repeated(self, body: bytes) -> bytes:
        """One message many times: in one array, where it is an array of one."""
        times = self.choice((2, 40, 1500))
        if body[:1] == b"\x91":
            return b"\xdc" + struct.pack(">H", times) + body[1:] * times
        return body * min(times, 40)

    def _grown(self, body: bytes) -> bytes:
        return body + self.randbytes(self.choice((1, 8, 4096)))

    def _array_of_many(self) -> bytes:
        ids = [f"{n:x}" for n in range(self.choice((999, 1001, 20_000)))]
        return msgspec.msgpack.encode([[self.choice((3, 4, 5)), 1, ids, "worker"]])
