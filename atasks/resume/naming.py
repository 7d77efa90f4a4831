"""Names for the steps of a call that resumes: what is asked for, and how often it was asked for before."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

__all__ = ["Names", "again", "digest"]

SIZE: Final = 16
"""Bytes of an id."""


def digest(args: Sequence[Any], kwargs: Mapping[str, Any], encoded: bytes) -> bytes:
    """A short name for arguments: equal ones have the same name in every process, as a rule.

    They are pickled without references from one part to another, which depend on which objects happen to be the
    same. What cannot be pickled so is named by `encoded`, the codec's bytes. A set of strings has another order in
    another process, so another name.
    """
    try:
        content = _pickled((tuple(args), sorted(kwargs.items())))
    except Exception:  # a pickle may raise anything
        content = encoded
    return blake2b(content, digest_size=SIZE).digest()


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()


def again(step: str) -> str:
    """The id with which a step is made again whose call has ended without a result."""
    return blake2b(step.encode(), digest_size=SIZE, person=b"atasks again").hexdigest()


class Names:
    """The names of the steps of one run, in the order in which they are asked for."""

    def __init__(self, journal: str) -> None:
        self._journal = journal.encode()
        self._times: Counter[bytes] = Counter()
        self._keys: dict[tuple[str, str], bytes] = {}

    def of(self, task: str, key: str | None, arguments: Callable[[], bytes]) -> str:
        """The id of the next call of this atask with these arguments, or with this key.

        Raises ValueError if the key was given to a call with other arguments.
        """
        content = arguments()
        if key is not None:
            known = self._keys.setdefault((task, key), content)
            if known != content:
                raise ValueError(
                    f"key={key!r} names two calls of {task} with different arguments: within a call that resumes, "
                    "give each call a key of its own"
                )
            content = b"key " + key.encode()
        named = blake2b(task.encode() + b"\0" + content, digest_size=SIZE).digest()
        number = self._times[named]
        self._times[named] += 1
        whole = blake2b(self._journal, digest_size=SIZE, person=b"atasks step")
        whole.update(named + number.to_bytes(8, "big"))
        return whole.hexdigest()
