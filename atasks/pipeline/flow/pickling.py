"""Pickles for the processes of stages, and of the stages themselves."""

from __future__ import annotations

from typing import Any

from atasks.codecs.cloudpickle import InOnePass, by_value, has_by_value_modules
from atasks.codecs.data import PROTOCOL
from atasks.codecs.pickle import is_at, pickled_pieces
from atasks.errors import PipelineError
from atasks.modules import MAIN_NAMES, UNGUARDED, is_waited_in

__all__ = ["to_bytes", "to_pieces"]


def to_bytes(content: Any) -> bytes:
    """A pickle; what cannot be imported travels by value, and so does what the script that was started defines.

    Raises EncodeError for what belongs to this process, PipelineError for what is of a module that waits for this
    while it is imported, and what pickling it raises.
    """
    return b"".join(to_pieces(content))


def to_pieces(content: Any) -> list[bytes | memoryview]:
    """The pieces of such a pickle. Large bytes are pieces of their own, without a copy, and so are arrays that
    cannot be written to."""
    pickler = by_value(_no_name) if has_by_value_modules() else _Pickler
    return pickled_pieces(content, pickler, PROTOCOL)


class _Pickler(InOnePass):
    def refer(self, obj: Any) -> Any:
        _no_name(obj)
        if obj.__module__ not in MAIN_NAMES and is_at(obj, obj.__module__):
            return NotImplemented
        return self.cloud().reducer_override(obj)


def _no_name(obj: Any) -> None:
    """Refuse to refer to a module that would have to be imported while it waits for this."""
    if isinstance(obj.__module__, str) and is_waited_in(obj.__module__):
        raise PipelineError(UNGUARDED)
