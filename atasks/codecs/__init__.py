"""Codecs: objects to bytes and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atasks import _on_demand

if TYPE_CHECKING:
    from atasks.codecs.base import Codec
    from atasks.codecs.cloudpickle import CloudpickleCodec
    from atasks.codecs.default import get_codec
    from atasks.codecs.msgpack import MsgpackCodec
    from atasks.codecs.pickle import PickleCodec
    from atasks.codecs.zstd import ZstdCodec

__all__ = ["CloudpickleCodec", "Codec", "MsgpackCodec", "PickleCodec", "ZstdCodec", "get_codec"]

_HOMES = {
    "atasks.codecs.base": "Codec",
    "atasks.codecs.cloudpickle": "CloudpickleCodec",
    "atasks.codecs.default": "get_codec",
    "atasks.codecs.msgpack": "MsgpackCodec",
    "atasks.codecs.pickle": "PickleCodec",
    "atasks.codecs.zstd": "ZstdCodec",
}
"""Module -> its public names. It is imported when one of them is used."""

if not TYPE_CHECKING:  # a checker would take any name for one that is here
    __getattr__, __dir__ = _on_demand(__name__, _HOMES)
