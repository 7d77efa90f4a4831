"""Pickles that also take what cannot be imported: lambdas, closures, local classes, the classes of a notebook."""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

from atasks.codecs.base import Codec
from atasks.codecs.pickle import main_reference, may_refer, mentions_main

__all__ = ["CloudpickleCodec", "dumps"]

_PROTOCOL = 5


class CloudpickleCodec(Codec):
    """Pickles, with cloudpickle where plain pickle does not do. The default codec.

    What can be imported by the other side travels by reference, the script that was started included. The rest
    travels by value: lambdas, closures, local classes, what a prompt or a notebook defines, and modules given to
    `cloudpickle.register_pickle_by_value`. A class that went out by value is the same class when it comes back.
    Both sides need the same Python minor version for what travels by value.

    Decoding a pickle runs what it says. Whoever can write to the broker, or to the socket, can run code here.
    """

    name = "cloudpickle"
    carries_types = True

    async def encode(self, obj: Any) -> bytes:
        try:
            content = pickle.dumps(obj, _PROTOCOL)
        except Exception:  # any class may raise anything; cloudpickle's attempt is what counts
            content = b""
        # Plain data refers to nothing, and a search for one byte is the only price that it pays here.
        if content and not (may_refer(content, obj) and (mentions_main(content) or _by_value_modules())):
            return content
        return dumps(obj)

    async def decode(self, content: bytes) -> Any:
        return pickle.loads(content)


def dumps(obj: Any) -> bytes:
    """A pickle that refers to what can be imported elsewhere, the script that was started included, and holds the
    rest by value."""
    file = io.BytesIO()
    _pickler()(file).dump(obj)
    return file.getvalue()


def _by_value_modules() -> bool:
    """Whether the user has registered modules with cloudpickle, whose contents must not travel by reference."""
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and bool(cloudpickle.list_registry_pickle_by_value())


@functools.cache
def _pickler() -> Callable[[io.BytesIO], pickle.Pickler]:
    """cloudpickle's pickler, with the script that was started by reference. Imported when it is first needed."""
    import cloudpickle  # type: ignore[import-untyped]

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        def reducer_override(self, obj: Any) -> Any:
            return main_reference(obj) or super().reducer_override(obj)

    return functools.partial(Pickler, protocol=_PROTOCOL)
