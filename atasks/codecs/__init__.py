"""Codecs: objects to bytes and back."""

from __future__ import annotations

from atasks.codecs.base import Codec, get_codec
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.codecs.msgpack import MsgpackCodec
from atasks.codecs.pickle import PickleCodec

__all__ = ["CloudpickleCodec", "Codec", "MsgpackCodec", "PickleCodec", "get_codec"]
