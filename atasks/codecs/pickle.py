"""Pickles that know the classes and functions of a script by the name under which a worker can import them."""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from atasks.codecs import bound
from atasks.codecs.base import Codec
from atasks.codecs.data import is_data, is_still
from atasks.codecs.pieces import PIECE_BYTES, Pieces
from atasks.errors import DecodeError, EncodeError
from atasks.modules import MAIN_NAMES, follow, main_name
from atasks.original import as_before

__all__ = [
    "PickleCodec",
    "Pickler",
    "in_pieces",
    "is_at",
    "main_reference",
    "pickled",
    "pickled_pieces",
    "resolve",
    "unpickled",
]

_BUILTIN: Final = frozenset(
    {"_weakrefset", "abc", "builtins", "dataclasses", "logging", "types", "typing", "weakref"}
)
"""Modules with classes of which plain pickle does not take the objects."""


class PickleCodec(Codec):
    """The standard library's pickles.

    Takes whatever pickle takes: what is defined at the top level of modules that both sides can import, the script
    that was started included. A lambda or a local class is an `EncodeError`: `CloudpickleCodec` takes those. So is
    what belongs to this process, as asyncio's locks, queues and events do.

    Decoding a pickle runs what it says. Whoever can write to the broker, or to the socket, can run code here.

    Args:
        namespace: The namespace whose codec it becomes.
        protocol: That of the pickles, from 4 on. None: 5.

    Raises:
        ValueError: This Python does not write that protocol.
    """

    name = "pickle"
    carries_types = True

    @as_before
    def __init__(self, namespace: str = "default", protocol: int | None = None) -> None:
        protocol = 5 if protocol is None else protocol
        if not 4 <= protocol <= pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"pickle protocol {protocol}: give one from 4 to {pickle.HIGHEST_PROTOCOL}")
        super().__init__(namespace)
        self.protocol = protocol

    async def encode(self, obj: Any) -> bytes:
        if is_data(obj):
            return pickle.dumps(obj, self.protocol)
        return pickled(obj, Pickler, self.protocol)

    async def pieces(self, obj: Any) -> bytes | Pieces:
        if is_data(obj):
            return pickle.dumps(obj, self.protocol)
        return in_pieces(obj, Pickler, self.protocol)

    async def decode(self, content: bytes) -> Any:
        return unpickled(content)


def unpickled(content: Any) -> Any:
    """Return the object of a pickle, or of one in pieces."""
    try:
        return pickle.loads(content)
    except TypeError:  # others need not be looked at
        if type(content) is not Pieces:
            raise
    return content.load()


def pickled(obj: Any, pickler: Callable[[Any, int], pickle.Pickler], protocol: int) -> bytes:
    """Pickle the object with such a pickler."""
    pieces: list[bytes | memoryview] = []
    return b"".join(_pieces(obj, pickler, protocol, _StillFile(pieces, obj), pieces))


def in_pieces(obj: Any, pickler: Callable[[Any, int], pickle.Pickler], protocol: int) -> bytes | Pieces:
    """Pickle the object with such a pickler. Where some of it is large, return pieces, which are to be copied
    before other code runs: they are the memory of arrays."""
    pieces: list[bytes | memoryview] = []
    _pieces(obj, pickler, protocol, _StillFile(pieces, obj), pieces)
    return Pieces(pieces) if max(map(len, pieces)) >= PIECE_BYTES else b"".join(pieces)


def pickled_pieces(
    obj: Any, pickler: Callable[[Any, int], pickle.Pickler], protocol: int
) -> list[bytes | memoryview]:
    """The pieces of such a pickle. Large bytes are pieces of their own, themselves, and so is the memory of arrays
    that cannot be written to; of other memory a copy is: the next object may be about to write to it."""
    pieces: list[bytes | memoryview] = []
    return _pieces(obj, pickler, protocol, _File(pieces), pieces)


def _pieces(
    obj: Any,
    pickler: Callable[[Any, int], pickle.Pickler],
    protocol: int,
    file: _File,
    pieces: list[bytes | memoryview],
) -> list[bytes | memoryview]:
    writer = pickler(file, protocol)
    try:
        writer.dump(obj)
    except Exception as error:
        from atasks.codecs.culprits import blame  # for an error only

        blame(error, getattr(writer, "last", None))
        raise
    return pieces


class _File:
    """The file that a pickler writes to."""

    __slots__ = ("_pieces",)

    def __init__(self, pieces: list[bytes | memoryview]) -> None:
        self._pieces = pieces

    def write(self, piece: Any) -> None:
        if type(piece) is pickle.PickleBuffer:
            memory = piece.raw()
            self._pieces.append(memory if memory.readonly else bytes(memory))
        else:
            self._pieces.append(bytes(piece))  # which are themselves, if they are bytes


class _StillFile(_File):
    """Such a file for pieces that are joined at once. The memory of arrays is a piece itself, if nothing can write
    to it before the pickle is whole: then it is copied once, and not twice."""

    __slots__ = ("_root", "_still")

    def __init__(self, pieces: list[bytes | memoryview], root: Any) -> None:
        super().__init__(pieces)
        self._root = root
        self._still: bool | None = None
        """True if pickling the root runs no code but Python's and NumPy's own; None: nobody has looked."""

    def write(self, piece: Any) -> None:
        if type(piece) is pickle.PickleBuffer:
            if self._still is None:
                self._still = is_still(self._root)
            if self._still:
                self._pieces.append(piece.raw())
                return
        elif type(piece) is bytearray:  # not in one piece: that would arrive as the memory of an array does
            whole = memoryview(bytes(piece))
            self._pieces += whole[:1], whole[1:]
            return
        super().write(piece)


class Pickler(pickle.Pickler):
    """Refers to the script that was started by its dotted name, and refuses what belongs to this process.

    Raises EncodeError for the latter, and whatever pickling the object raises.
    """

    last: Any = None
    """The object that was looked at last: the one to blame, if its pickling fails."""

    def reducer_override(self, obj: Any) -> Any:
        self.last = obj
        try:
            rule = _known_rule(type(obj))
        except TypeError:  # a metaclass without hashes
            rule = _rule(type(obj))
        return NotImplemented if rule is None else rule(self, obj)

    def refer(self, obj: Any) -> Any:
        """Return the way in which a class or function is pickled."""
        return (obj.__module__ in MAIN_NAMES and main_reference(obj)) or NotImplemented

    def reduce_builtin(self, obj: Any) -> Any:
        """Return the way in which an object of a class of Python's own is pickled."""
        return NotImplemented


def _rule(kind: type) -> Callable[[Any, Any], Any] | None:
    """Return the function that pickles or refuses objects of this class; None: their own pickling does."""
    if issubclass(kind, type | FunctionType):
        return _refer
    if bound.reason(kind) is not None:
        return _refuse
    return _reduce_builtin if kind.__module__ in _BUILTIN else None


_known_rule: Final[Callable[[Any], Callable[[Any, Any], Any] | None]] = functools.lru_cache(1024)(_rule)


def _refer(pickler: Pickler, obj: Any) -> Any:
    return pickler.refer(obj)


def _reduce_builtin(pickler: Pickler, obj: Any) -> Any:
    return pickler.reduce_builtin(obj)


def _refuse(pickler: Pickler, obj: Any) -> Any:
    if obj is sys.stdout or obj is sys.stderr:
        return pickler.reduce_builtin(obj)  # the other side has its own
    kind = type(obj)
    raise EncodeError(f"{kind.__module__}.{kind.__qualname__} cannot travel: {bound.reason(kind)}")


def main_reference(obj: object) -> tuple[Callable[[str, str], Any], tuple[str, str]] | None:
    """Return the reference to a class or function of `__main__` by its dotted name.

    None for everything else, and where no such name leads to the object: `__main__` is a prompt or a notebook, or
    the object is local to a function, or the name has since been given to something else.
    """
    if not isinstance(obj, (type, FunctionType)):
        return None
    module = obj.__module__
    if module not in MAIN_NAMES:
        return None
    dotted = main_name()
    if dotted is None:
        return None
    try:
        found = follow(sys.modules[module], obj.__qualname__)
    except (AttributeError, KeyError):
        return None
    return (resolve, (dotted, obj.__qualname__)) if found is obj else None


def resolve(module: str, qualname: str) -> Any:
    """Return the object of a `main_reference`: pickles name this function. `__main__` itself is not imported
    twice."""
    main_name()  # makes sys.modules know __main__ by its dotted name
    try:
        return follow(importlib.import_module(module), qualname)
    except ImportError as error:
        raise DecodeError(
            f"the script that defines {qualname} cannot be imported as {module!r} here ({error}): start this side "
            "where it can, or move the definition to a module that both sides import"
        ) from error
    except AttributeError as error:
        raise DecodeError(
            f"{module} has no {qualname} here: both sides need the same version of it, and what it defines under "
            'if __name__ == "__main__": exists only where it is run'
        ) from error


def is_at(obj: Any, module: Any) -> bool:
    """Return True if the qualified name of a class or function leads to it in this module, which is loaded."""
    try:
        return follow(sys.modules[module], obj.__qualname__) is obj
    except (AttributeError, KeyError, TypeError):
        return False
