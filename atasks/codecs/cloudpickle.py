"""Pickles that also take what cannot be imported: lambdas, closures, local classes, the classes of a notebook."""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

from atasks.codecs.base import Codec
from atasks.codecs.data import is_data
from atasks.codecs.pickle import Pickler, in_pieces, is_at, main_reference, pickled, unpickled
from atasks.codecs.pieces import Pieces
from atasks.modules import MAIN_NAMES

__all__ = ["CloudpickleCodec", "InOnePass", "by_value", "dumps", "has_by_value_modules"]

_PROTOCOL = 5


class CloudpickleCodec(Codec):
    """Pickles, with cloudpickle where plain pickle does not do. The default codec.

    What can be imported by the other side travels by reference, the script that was started included. The rest
    travels by value: lambdas, closures, local classes, what a prompt or a notebook defines, and modules given to
    `cloudpickle.register_pickle_by_value`. A class that went out by value is the same class when it comes back.
    Both sides need the same Python minor version for what travels by value. A memoryview arrives as bytes.

    What belongs to this process is an `EncodeError`: asyncio's locks, queues, events, tasks and the like, also in
    attributes and closures, and open files.

    Decoding a pickle runs what it says. Whoever can write to the broker, or to the socket, can run code here.
    """

    name = "cloudpickle"
    carries_types = True

    async def encode(self, obj: Any) -> bytes:
        if is_data(obj):
            return pickle.dumps(obj, _PROTOCOL)
        return dumps(obj)

    async def pieces(self, obj: Any) -> bytes | Pieces:
        if is_data(obj):
            return pickle.dumps(obj, _PROTOCOL)
        return in_pieces(obj, _pickler(), _PROTOCOL)

    async def decode(self, content: bytes) -> Any:
        return unpickled(content)


def dumps(obj: Any) -> bytes:
    """A pickle that refers to what can be imported elsewhere, the script that was started included, and holds the
    rest by value. Raises EncodeError for what belongs to this process, and what pickling the object raises."""
    return pickled(obj, _pickler(), _PROTOCOL)


def _pickler() -> Callable[[Any, int], pickle.Pickler]:
    return by_value(main_reference) if has_by_value_modules() else InOnePass


class InOnePass(Pickler):
    """Asks cloudpickle only where plain pickle does not do, so that it need not be imported, and no `__reduce__`
    runs twice."""

    _cloudpickler: Any = None

    def refer(self, obj: Any) -> Any:
        module = obj.__module__
        if module in MAIN_NAMES:
            reference = main_reference(obj)
            if reference is not None:
                return reference
        elif is_at(obj, module):
            return NotImplemented
        return self.cloud().reducer_override(obj)

    def reduce_builtin(self, obj: Any) -> Any:
        reduce = self.cloud().dispatch_table.get(type(obj))
        return NotImplemented if reduce is None else reduce(obj)

    def cloud(self) -> Any:
        """Return cloudpickle's pickler, one for the whole pickle: what it makes of functions of one module shares
        their globals."""
        if self._cloudpickler is None:
            import cloudpickle  # type: ignore[import-untyped]

            self._cloudpickler = cloudpickle.Pickler(io.BytesIO(), _PROTOCOL)
        return self._cloudpickler


def has_by_value_modules() -> bool:
    """Return True if the user has registered modules with cloudpickle: their contents must not travel by
    reference."""
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and bool(cloudpickle.list_registry_pickle_by_value())


@functools.cache
def by_value(by_name: Callable[[Any], Any]) -> type[pickle.Pickler]:
    """cloudpickle's pickler, which refuses what belongs to this process, and asks `by_name` for a reference to a
    class or function first. Imported when it is first needed."""
    import cloudpickle

    class ByValuePickler(Pickler, cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        def refer(self, obj: Any) -> Any:
            return by_name(obj) or cloudpickle.Pickler.reducer_override(self, obj)

    return ByValuePickler
