"""The codec that compresses large payloads of another one."""

from __future__ import annotations

import os
import sys

import pytest
import zstandard

import atasks
from atasks import CloudpickleCodec, Codec, DecodeError, MsgpackCodec, PickleCodec, ZstdCodec, atask, get_codec

MAGIC = b"\x28\xb5\x2f\xfd"


class Raw(Codec):
    """Bytes as they are, whatever they begin with."""

    async def encode(self, obj: bytes) -> bytes:
        return obj

    async def decode(self, content: bytes) -> bytes:
        return content


async def test_large_payloads_shrink_and_small_ones_stay_as_they_are(namespace: str) -> None:
    codec = ZstdCodec(PickleCodec(namespace))
    small, large = "x" * 1000, "x" * 1_000_000
    assert await codec.encode(small) == await codec.inner.encode(small)
    content = await codec.encode(large)
    assert content.startswith(MAGIC)
    assert len(content) < 1000
    assert await codec.decode(content) == large
    assert await codec.decode(await codec.encode(small)) == small


async def test_what_does_not_shrink_travels_as_it_is(namespace: str) -> None:
    codec = ZstdCodec(Raw(namespace))
    noise = os.urandom(100_000)
    assert await codec.encode(noise) == noise
    assert await codec.decode(noise) == noise


async def test_bytes_that_look_compressed_arrive_unchanged(namespace: str) -> None:
    codec = ZstdCodec(Raw(namespace))
    for content in (MAGIC, MAGIC + b"no frame", MAGIC + os.urandom(100_000), zstandard.compress(b"x" * 9)):
        assert await codec.decode(await codec.encode(content)) == content


async def test_calls_results_and_exceptions_go_through_it(namespace: str) -> None:
    codec = ZstdCodec(MsgpackCodec(namespace), threshold=100)
    assert get_codec(namespace) is codec
    assert codec.name == "msgpack+zstd"

    @atask(namespace=namespace)
    async def repeat(text: str, times: int) -> str:
        if times < 0:
            raise ValueError(text)
        return text * times

    async with atasks.connect("loopback:", namespace=namespace):
        assert await repeat("ab" * 1000, 3) == "ab" * 3000
        with pytest.raises(ValueError, match="cd" * 1000):
            await repeat("cd" * 1000, -1)


async def test_both_sides_need_the_same_inner_codec(namespace: str) -> None:
    assert ZstdCodec(PickleCodec(namespace)).name != ZstdCodec(CloudpickleCodec(namespace)).name
    assert ZstdCodec(PickleCodec(namespace)).carries_types
    assert not ZstdCodec(MsgpackCodec(namespace)).carries_types


async def test_damaged_content_is_a_decode_error(namespace: str) -> None:
    codec = ZstdCodec(Raw(namespace))
    content = bytearray(await codec.encode(b"x" * 1_000_000))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DecodeError, match="cannot be decompressed"):
        await codec.decode(bytes(content[:-3]))
    with pytest.raises(DecodeError, match="cannot be decompressed"):
        await codec.decode(MAGIC)


async def test_a_small_payload_that_would_fill_the_memory_is_refused(namespace: str) -> None:
    codec = ZstdCodec(Raw(namespace), max_bytes=1_000_000)
    assert await codec.decode(zstandard.compress(b"\0" * 1_000_000)) == b"\0" * 1_000_000
    with pytest.raises(DecodeError, match="claims to hold 1000001 bytes: at most 1000000"):
        await codec.decode(zstandard.compress(b"\0" * 1_000_001))
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 2_000_000)
    with pytest.raises(DecodeError, match="at most 1000000"):
        await codec.decode(unknown)


@pytest.mark.parametrize(
    "more", [zstandard.compress(b"y" * 999), b"x", b"\x50\x2a\x4d\x18", b"\x50\x2a\x4d\x18\xff\xff\xff\xffx"]
)
async def test_what_is_behind_the_frame_is_not_dropped_without_a_word(namespace: str, more: bytes) -> None:
    """Several frames are one content to other programs."""
    with pytest.raises(DecodeError, match="cannot be decompressed"):
        await ZstdCodec(Raw(namespace)).decode(zstandard.compress(b"x" * 999) + more)


async def test_frames_that_were_padded_are_taken(namespace: str) -> None:
    codec = ZstdCodec(Raw(namespace))
    content = MAGIC + bytes(10**7)
    padded = await codec.encode(content)
    assert len(padded) > 10_000
    assert padded.endswith(bytes(5_000))
    assert await codec.decode(padded) == content


def test_without_the_package_the_error_says_what_to_install(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"pip install zstandard"):
        ZstdCodec(namespace=namespace)


def test_a_level_that_zstd_does_not_have_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="level=20: 1 to 19"):
        ZstdCodec(namespace=namespace, level=20)
