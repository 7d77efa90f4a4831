"""Names for the steps of a call that resumes: what is asked for, and how often it was asked for before."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

__all__ = ["Names", "again", "content"]

SIZE: Final = 16
"""Bytes of an id."""


def content(args: Sequence[Any], kwargs: Mapping[str, Any], encoded: bytes) -> bytes:
    """Arguments as bytes: equal ones have the same in every process, as a rule.

    They are pickled without references from one part to another, which depend on which objects happen to be the
    same. What cannot be pickled so is named by `encoded`, the codec's bytes. A set of strings has another order in
    another process, so another name.
    """
    buffer = io.BytesIO()
    try:
        pickler = pickle.Pickler(buffer, protocol=5)
        pickler.fast = True
        pickler.dump((tuple(args), sorted(kwargs.items())))
    except Exception:  # a pickle may raise anything
        return encoded
    return buffer.getvalue()


def again(step: str) -> str:
    """The id with which a step is made again whose call has ended without a result."""
    return blake2b(step.encode(), digest_size=SIZE, person=b"atasks again").hexdigest()


class Names:
    """The names of the steps of one run, in the order in which they are asked for."""

    __slots__ = ("_journal", "_keys", "_times", "given")

    def __init__(self, journal: str) -> None:
        self._journal = journal
        self._times: dict[str, int] | None = None
        """First step of that name -> how often it was asked for again."""
        self.given: dict[str, bool] = {}
        """Id of a step -> True once it was looked for in the journal."""
        self._keys: dict[tuple[str, str], bytes] | None = None

    def of(self, task: str, key: str | None, arguments: bytes) -> str:
        """The id of the next call of this atask with these arguments, or with this key.

        Raises ValueError if the key was given to a call with other arguments.
        """
        named = blake2b(task.encode(), digest_size=SIZE)
        if key is None:
            named.update(b"\0" + arguments)
        else:
            digest = blake2b(arguments).digest()
            if self._keys is None:
                self._keys = {}
            if self._keys.setdefault((task, key), digest) != digest:
                raise ValueError(
                    f"key={key!r} names two calls of {task} with different arguments: within a call that resumes, "
                    "give each call a key of its own"
                )
            named.update(b"\0key " + key.encode())
        name = self._journal.encode() + named.digest()
        step = first = _step(name, 0)
        if first in self.given:
            if self._times is None:
                self._times = {}
            number = self._times[first] = self._times.get(first, 0) + 1
            step = _step(name, number)
        self.given[step] = False
        return step


def _step(name: bytes, number: int) -> str:
    return blake2b(name + number.to_bytes(8, "big"), digest_size=SIZE, person=b"atasks step").hexdigest()
