"""The keys of this process, as their file has them now."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final

from atasks.errors import InvalidKeys
from atasks.signing.keyfile import read, version
from atasks.signing.keys import Key

__all__ = ["Keyring"]

logger = logging.getLogger("atasks.keys")

PAUSE: Final = 10.0
"""Seconds between two readings of a file that has not changed."""


class Keyring:
    """The keys of a file. The first one seals; each of them opens what it sealed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InvalidKeys."""
        self.path = os.path.abspath(path)
        self._keys: dict[str, Key] = {}
        self._known: dict[str, Key] = {}
        """With those that the file has had before: what they asked for is answered still."""
        self.own: Key
        """The key that seals."""
        self.replaced: Callable[[str], object] | None = None
        """Hears the name of the key that sealed before, once another one does."""
        self.mine: set[str] = set()
        """The names of all that have sealed here: answers come under these."""
        self._version: tuple[int, ...] = ()
        self._read = 0.0
        self._load()

    def _load(self) -> None:
        self._read = time.monotonic()
        keys, self._version = read(self.path)
        before = self.own.name if self._keys else ""
        self._keys = {key.name: key for key in keys}
        self._known.update(self._keys)
        self.own = keys[0]
        self.mine.add(self.own.name)
        if self.replaced is not None and before != self.own.name:
            self.replaced(before)

    def reread(self) -> None:
        """Read the file again. If it cannot be used, say so and keep the keys that are known."""
        try:
            self._load()
        except InvalidKeys as error:
            logger.error(
                "the file of keys cannot be used, so the keys that were read before stay in use: %s", error
            )
        else:
            logger.info("%d keys were read from %s: %s", len(self._keys), self.path, ", ".join(self._keys))

    def find(self, name: str) -> Key | None:
        """The key of that name in the file. For an unknown one the file is read again, at once if it has changed,
        else every 10 s at most."""
        key = self._keys.get(name)
        if key is None and self._is_due():
            self.reread()
            key = self._keys.get(name)
        return key

    def known(self, name: str) -> Key | None:
        """The key of that name, even if the file does not have it any more."""
        return self._known.get(name)

    def _is_due(self) -> bool:
        if time.monotonic() - self._read >= PAUSE:
            return True
        try:
            current = version(os.stat(self.path))
        except OSError:
            return False
        if current == self._version:
            return False
        self._version = current  # a file that cannot be used is read once, until it changes
        return True

    def __repr__(self) -> str:
        return f"<Keyring of {', '.join(self._keys)}>"
