"""The codec of a namespace."""

from __future__ import annotations

from atasks.codecs.base import Codec
from atasks.namespaces import namespaces

__all__ = ["get_codec"]


def get_codec(namespace: str = "default") -> Codec:
    """The codec of the namespace: the one constructed last for it, else a `CloudpickleCodec`."""
    item = namespaces.get(namespace)
    codec: Codec | None = getattr(item, "codec", None)
    if codec is None:
        from atasks.codecs.cloudpickle import CloudpickleCodec

        codec = CloudpickleCodec(namespace)
    return codec
