"""Codecs: objects to bytes and back."""

from __future__ import annotations

from atasks.codecs.base import Codec
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.codecs.default import get_codec
from atasks.codecs.msgpack import MsgpackCodec
from atasks.codecs.pickle import PickleCodec
from atasks.codecs.zstd import ZstdCodec

__all__ = ["CloudpickleCodec", "Codec", "MsgpackCodec", "PickleCodec", "ZstdCodec", "get_codec"]
