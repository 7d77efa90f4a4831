"""A key: whose seals it makes, and what their owner may do."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final, NoReturn

__all__ = ["MAX_NAME", "MIN_SECRET", "Key"]

MAX_NAME: Final = 32
"""Characters of the name of a key."""
MIN_SECRET: Final = 32
"""Bytes of a secret."""
NAME: Final = re.compile(rf"[a-z0-9.-]{{1,{MAX_NAME}}}")


class Key:
    """A secret under a name, and what messages under its seal may ask for.

    `serve`: it belongs to workers, which may seal for others and ask about every call. `encrypt`: what it seals is
    encrypted too. `tasks` and `queues` are patterns (`shop.*`) of the atasks and work queues that may be called;
    empty: all. `max_attempts` caps the option of that name; None: no cap. The secret shows in no `repr`, and a key
    cannot be pickled.
    """

    __slots__ = ("_hmac", "encrypt", "max_attempts", "name", "queues", "secret", "serve", "tasks")

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
        self._hmac = hmac.new(secret, digestmod="sha256")

    @property
    def is_free(self) -> bool:
        """True if its owner may call everything, as often as the options of a call say."""
        return not (self.tasks or self.queues) and self.max_attempts is None

    def mac(self, *parts: bytes) -> bytes:
        """The HMAC-SHA-256 of these bytes, one behind the other. What the secret alone decides was hashed before:
        that is half of the work for a short message."""
        mac = self._hmac.copy()
        for part in parts:
            mac.update(part)
        return mac.digest()

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
