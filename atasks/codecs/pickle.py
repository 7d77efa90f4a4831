"""Pickles that know the classes and functions of a script by the name under which a worker can import them."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from atasks.codecs.base import Codec
from atasks.errors import DecodeError

__all__ = ["PickleCodec", "main_reference", "may_refer", "mentions_main", "resolve"]

STACK_GLOBAL: Final = 0x93
"""The opcode of every reference to a class or function, since pickle protocol 4: data without it refers to
nothing."""
LARGE: Final = 2**16
"""Bytes of a pickle from which on searching it takes longer than a look at what was pickled."""
_DATA: Final = frozenset({bytes, bytearray, str, int, float, bool, type(None)})


class PickleCodec(Codec):
    """The standard library's pickles.

    Takes whatever pickle takes: what is defined at the top level of modules that both sides can import, the script
    that was started included. A lambda or a local class is an `EncodeError`: `CloudpickleCodec` takes those.

    Decoding a pickle runs what it says. Whoever can write to the broker, or to the socket, can run code here.
    """

    name = "pickle"
    carries_types = True

    def __init__(self, namespace: str = "default", protocol: int = 5) -> None:
        if not 4 <= protocol <= pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"pickle protocol {protocol}: give one from 4 to {pickle.HIGHEST_PROTOCOL}")
        super().__init__(namespace)
        self.protocol = protocol

    async def encode(self, obj: Any) -> bytes:
        content = pickle.dumps(obj, self.protocol)
        if may_refer(content, obj) and mentions_main(content):
            file = io.BytesIO()
            _Pickler(file, self.protocol).dump(obj)
            return file.getvalue()
        return content

    async def decode(self, content: bytes) -> Any:
        return pickle.loads(content)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return main_reference(obj) or NotImplemented


def may_refer(content: bytes, obj: object) -> bool:
    """Whether a pickle of `obj` may refer to a class or function: False for plain data, as far as that is cheap to
    see."""
    return STACK_GLOBAL in content and not (len(content) > LARGE and _is_data(obj))


def _is_data(obj: object) -> bool:
    """Whether it is bytes, a text or a number, or the arguments of a call that are all of that kind."""
    if type(obj) is tuple and list(map(type, obj)) == [tuple, dict]:
        args, kwargs = obj
        return all(type(item) in _DATA for item in (*args, *kwargs, *kwargs.values()))
    return type(obj) in _DATA


def mentions_main(content: bytes) -> bool:
    """Whether a pickle may refer to something in `__main__`, or in `__mp_main__`, by that name.

    True is also the answer for text that looks the same; that costs another, slower pickling and nothing else.
    """
    # bytes.find takes three times as long as rfind on bytes of no particular pattern
    return content.rfind(b"_main__") >= 0


def main_reference(obj: object) -> tuple[Callable[[str, str], Any], tuple[str, str]] | None:
    """How a pickle refers to a class or function of `__main__` by its dotted name.

    None for everything else, and where no such name leads to the object: `__main__` is a prompt or a notebook, or
    the object is local to a function, or the name has since been given to something else.
    """
    if not isinstance(obj, type | FunctionType):
        return None
    from atasks.modules import MAIN_NAMES, main_name

    module = obj.__module__
    if module not in MAIN_NAMES:
        return None
    dotted = main_name()
    if dotted is None:
        return None
    try:
        found = _walk(sys.modules[module], obj.__qualname__)
    except (AttributeError, KeyError):
        return None
    return (resolve, (dotted, obj.__qualname__)) if found is obj else None


def resolve(module: str, qualname: str) -> Any:
    """What `main_reference` refers to: pickles name this function. `__main__` itself is not imported twice."""
    from atasks.modules import main_name

    main_name()  # makes sys.modules know __main__ by its dotted name
    try:
        return _walk(importlib.import_module(module), qualname)
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


def _walk(found: Any, qualname: str) -> Any:
    for name in qualname.split("."):
        found = getattr(found, name)
    return found
