"""Pickles in pieces: a codec of one's own is asked, and what was sent does not change any more."""

# Private attributes: _advise, ADVICE.

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import mmap
import os
from typing import Any

import pytest

from atasks.codecs import pieces
from atasks.codecs.base import Codec
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.codecs.pieces import MAX_PIECES, MAX_SHARED, SEALS, SHARED_BYTES, SHARES, Pieces, Shared
from atasks.failures.failures import (
    decode_failure,
    describe_failure,
    encode_failure,
    failure_text,
    raised_type,
)

SIZE = 2 * SHARED_BYTES

on_linux = pytest.mark.skipif(not SHARES, reason="needs memory without a name, which Linux has")


class Encrypting:
    """To be mixed in."""

    async def encode(self, obj: Any) -> bytes:
        return bytes(255 - byte for byte in await super().encode(obj))  # type: ignore[misc]


class Decrypting:
    """To be mixed in."""

    async def decode(self, content: bytes) -> Any:
        return await super().decode(bytes(255 - byte for byte in content))  # type: ignore[misc]


class Asking:
    """To be mixed in: it does not know of bytes."""

    async def pieces(self, obj: Any) -> bytes | Pieces:
        return await super().pieces(obj)  # type: ignore[misc,no-any-return]


class EncryptingCodec(Encrypting, CloudpickleCodec):
    """Encodes in its own way."""


class DecryptingCodec(Decrypting, CloudpickleCodec):
    """Decodes in its own way."""


class Further(EncryptingCodec):
    """Inherits that."""


class Behind(CloudpickleCodec, Encrypting):
    """Overrides nothing."""


class AskingCodec(Asking, CloudpickleCodec):
    """Overrides nothing but the pieces."""


@pytest.mark.parametrize("kind", [EncryptingCodec, DecryptingCodec, Further])
async def test_a_codec_that_is_mixed_in_is_asked(kind: type[Codec]) -> None:
    codec = kind("mixed")
    sent = await codec.pieces(bytes(SIZE))
    assert type(sent) is bytes
    assert sent == await codec.encode(bytes(SIZE))


@pytest.mark.parametrize("kind", [Behind, AskingCodec])
async def test_what_overrides_nothing_leaves_the_pieces(kind: type[Codec]) -> None:
    assert type(await kind("pieces").pieces(bytes(SIZE))) is Pieces


def test_a_system_without_large_pages_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is imported anew, as on macOS."""
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    spec = importlib.util.find_spec(pieces.__name__)
    assert spec is not None
    assert spec.loader is not None
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    asked: list[int] = []
    monkeypatch.setattr(there, "_system", lambda: asked.append(1))
    there._advise(memoryview(bytearray(3 * there.HUGE)))
    assert there.ADVICE is None
    assert asked == []


@on_linux
def test_what_is_shared_does_not_change_with_what_was_sent() -> None:
    large, small = bytearray(SIZE), bytearray(100)
    shared = Pieces([b"before", memoryview(large), memoryview(small)]).shared()
    assert type(shared) is Pieces
    large[:] = b"x" * SIZE
    small[:] = b"x" * 100
    assert bytes(shared) == b"before" + bytes(SIZE + 100)


@on_linux
@pytest.mark.parametrize("others", [0, MAX_SHARED - 2, MAX_SHARED - 1])
@pytest.mark.parametrize("large", [2, MAX_PIECES, MAX_PIECES + 1])
def test_no_memory_is_made_beyond_what_there_may_be(
    others: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    copy = Shared.copy

    def note(piece: bytes | memoryview) -> Shared:
        made.append(len(piece))
        return copy(piece)

    monkeypatch.setattr(Shared, "copy", note)
    monkeypatch.setattr(Shared, "count", Shared.count + others)
    content = bytes(SHARED_BYTES)
    found = Pieces([content] * large).shared()
    fits = large <= MAX_PIECES and others + large <= MAX_SHARED
    assert len(made) == (large if fits else 0)
    assert type(found) is (Pieces if fits else bytes)
    assert len(found) == large * SHARED_BYTES
    del found


async def test_a_failure_in_pieces_is_read() -> None:
    content = await encode_failure(ValueError("x" * 9), CloudpickleCodec("failing"), hop="")
    sent: Any = Pieces([content[:5], content[5:]])
    found = await decode_failure(sent, CloudpickleCodec("failing"))
    assert type(found) is ValueError
    assert found.args == ("x" * 9,)
    assert raised_type(sent) == "ValueError"
    assert "ValueError" in failure_text(sent)
    assert b"ValueError" in describe_failure(sent)


@on_linux
def test_memory_with_a_hole_is_refused_whatever_is_behind_its_end() -> None:
    descriptor = os.memfd_create("hollow", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    keep_size = 1
    allocate = ctypes.CDLL(None, use_errno=True).fallocate
    allocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    assert allocate(descriptor, keep_size, SIZE, SIZE) == 0
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    state = os.fstat(descriptor)
    assert state.st_blocks * 512 >= state.st_size == SIZE
    with pytest.raises(OSError, match="not there"):
        Shared(descriptor)
