"""A key: whose seals it makes, and what their owner may do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Final, NoReturn

__all__ = ["MAX_NAME", "MIN_SECRET", "Key"]

MAX_NAME: Final = 32
"""Characters of the name of a key."""
MIN_SECRET: Final = 32
"""Bytes of a secret."""
NAME: Final = re.compile(rf"[a-z0-9.-]{{1,{MAX_NAME}}}")
MAGIC: Final = 0xC1
PLAIN: Final = 1
ENCRYPTED: Final = 2
"""The first byte of what is sealed, and the second one: its format."""
BLOCK: Final = 64
"""Bytes of a block of SHA-256."""
INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
"""The pads of HMAC (RFC 2104), as translations."""


class Key:
    """A secret under a name, and what messages under its seal may ask for.

    `serve`: it belongs to workers, which may seal for others and ask about every call. `encrypt`: what it seals is
    encrypted too. `tasks` and `queues` are patterns (`shop.*`) of the atasks and work queues that may be called;
    empty: all. `max_attempts` caps the option of that name; None: no cap. The secret shows in no `repr`, and a key
    cannot be pickled.
    """

    __slots__ = (
        "_inner",
        "_outer",
        "encrypt",
        "is_free",
        "max_attempts",
        "name",
        "queues",
        "secret",
        "serve",
        "start",
        "tasks",
    )

    def __init__(
        self,
        name: str,
        secret: bytes,
        *,
        serve: bool = False,
        encrypt: bool = False,
        tasks: Sequence[str] = (),
        queues: Sequence[str] = (),
        max_attempts: int | None = None,
    ) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"the name of a key has 1 to {MAX_NAME} of a-z, 0-9, dot and hyphen")
        if len(secret) < MIN_SECRET:
            raise ValueError(f"the secret of key {name!r} has {len(secret)} bytes: at least {MIN_SECRET}")
        self.name = name
        self.secret = secret
        self.serve = serve
        self.encrypt = encrypt
        self.tasks = tuple(tasks)
        self.queues = tuple(queues)
        self.max_attempts = max_attempts
        self.is_free = not (self.tasks or self.queues) and max_attempts is None
        """True if its owner may call everything, as often as the options of a call say."""
        self.start = bytes((MAGIC, ENCRYPTED if encrypt else PLAIN, len(name))) + name.encode()
        """The first bytes of what it seals, up to the time."""
        block = (secret if len(secret) <= BLOCK else sha256(secret).digest()).ljust(BLOCK, b"\0")
        self._inner = sha256(block.translate(INNER))
        self._outer = sha256(block.translate(OUTER))

    def mac(self, head: bytes, body: bytes | memoryview, *more: bytes | memoryview) -> bytes:
        """The HMAC-SHA-256 of these, one behind the other. What the secret alone decides was hashed before, which
        is half of the work for a short message; `hmac` does that too, and copies its state at twice the cost."""
        inner = self._inner.copy()
        inner.update(head)
        inner.update(body)
        for piece in more:
            inner.update(piece)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()

    def may_call(self, task: str) -> bool:
        """Say whether its owner may call an atask of this name."""
        return not self.tasks or any(fnmatchcase(task, pattern) for pattern in self.tasks)

    def may_use(self, queue: str) -> bool:
        """Say whether its owner may send to the work queue of this name."""
        return not self.queues or any(fnmatchcase(queue, pattern) for pattern in self.queues)

    def describe(self) -> str:
        """The key as its line in a file, without the secret."""
        parts = [self.name, *["serve"] * self.serve, *["encrypt"] * self.encrypt]
        parts += [f"tasks={','.join(self.tasks)}"] if self.tasks else []
        parts += [f"queues={','.join(self.queues)}"] if self.queues else []
        parts += [f"max_attempts={self.max_attempts}"] if self.max_attempts is not None else []
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"<Key {self.describe()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled: a process that needs one reads the file of keys itself")
