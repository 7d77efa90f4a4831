"""Any codec, with large payloads compressed by zstd."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from atasks.codecs.base import Codec, as_bytes
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.errors import DecodeError

__all__ = ["ZstdCodec"]

MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""The first bytes of every zstd frame (RFC 8878, section 3.1.1)."""
MAX_RATIO: Final = 1000
"""The largest ratio of a payload after and before decompression, if the result is more than a megabyte."""
_PADDING: Final = struct.Struct("<II")
_SKIPPED: Final = 0x184D2A50
"""The first bytes of a frame that readers skip (RFC 8878, section 3.1.2)."""


class ZstdCodec(Codec):
    """Payloads of `threshold` bytes or more travel compressed, if that makes them smaller.

    What decompresses to more than a thousand times its size and a megabyte is a `DecodeError`, before the memory
    is taken; what would shrink so much travels as it is.

    Args:
        inner: The codec that makes the bytes; both sides need the same one. None: `CloudpickleCodec`.
        namespace: The namespace whose codec it becomes; with `inner`, that of `inner`.
        threshold: Bytes from which on a payload is compressed.
        level: That of zstd, 1 to 19: a higher one is slower to write and smaller.
        max_bytes: Bytes that a payload may have when it is decompressed: more is a `DecodeError` too.

    Raises:
        ImportError: The package zstandard is missing: `pip install zstandard`.
        ValueError: There is no such level.
    """

    def __init__(
        self,
        inner: Codec | None = None,
        *,
        namespace: str = "default",
        threshold: int = 64 * 2**10,
        level: int = 1,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        try:
            import zstandard
        except ImportError:
            raise ImportError("ZstdCodec needs the package zstandard: pip install zstandard") from None
        if not 1 <= level <= 19:
            raise ValueError(f"level={level}: 1 to 19")
        self.inner = CloudpickleCodec(namespace) if inner is None else inner
        super().__init__(self.inner.namespace)  # replaces the inner codec, which has registered itself
        self.name = f"{self.inner.name}+zstd"
        self.carries_types = self.inner.carries_types
        self.compresses = True
        self.threshold = threshold
        self._max_bytes = max_bytes
        self._level = level
        self._zstd = zstandard

    async def encode(self, obj: Any) -> bytes:
        content = as_bytes(await self.inner.encode(obj), self.inner)
        if len(content) >= self.threshold:
            smaller = self._compress(content)
            if len(smaller) < len(content) <= _most(smaller):
                return smaller
        if content.startswith(MAGIC):  # it would be taken for compressed
            smaller = self._compress(content)
            missing = len(content) // MAX_RATIO + 1 - len(smaller)
            return smaller + _padding(missing) if missing > 0 else smaller
        return content

    async def decode(self, content: bytes) -> Any:
        return await self.inner.decode(self._plain(content))

    async def decode_arguments(self, content: bytes, function: Callable[..., Any]) -> tuple[Any, Any]:
        return await self.inner.decode_arguments(self._plain(content), function)

    async def decode_result(self, content: bytes, function: Callable[..., Any]) -> Any:
        return await self.inner.decode_result(self._plain(content), function)

    def name_exception(self, cls: type) -> tuple[str, str] | None:
        return self.inner.name_exception(cls)

    def find_exception(self, module: str, qualname: str) -> Any:
        return self.inner.find_exception(module, qualname)

    def _compress(self, content: bytes) -> bytes:
        return self._zstd.compress(content, self._level)

    def _plain(self, content: bytes) -> bytes:
        if not content.startswith(MAGIC):
            return content
        try:
            size = self._zstd.get_frame_parameters(content).content_size
            if size > self._max_bytes:  # an unknown size is told as the largest number
                raise DecodeError(
                    f"a compressed payload claims to hold {size} bytes: at most "
                    f"{self._max_bytes} are taken (max_bytes)"
                )
            if size > _most(content):
                raise DecodeError(
                    f"a compressed payload of {len(content)} bytes claims to hold {size} bytes: at most "
                    f"{MAX_RATIO} times its size are taken"
                )
            return self._decompressed(content, size)
        except self._zstd.ZstdError as error:
            raise DecodeError(f"a payload cannot be decompressed ({error})") from None

    def _decompressed(self, content: bytes, size: int) -> bytes:
        decompress = self._zstd.ZstdDecompressor().decompress
        try:
            return decompress(content, size, allow_extra_data=False)
        except self._zstd.ZstdError:
            at = content.rfind(_SKIPPED.to_bytes(4, "little"))
            if at < 0 or content[at:] != _padding(len(content) - at - _PADDING.size):
                raise
            return decompress(content[:at], size, allow_extra_data=False)


def _padding(count: int) -> bytes:
    """A frame that readers skip, of so many bytes behind its head."""
    return _PADDING.pack(_SKIPPED, count) + bytes(count) if count >= 0 else b""


def _most(compressed: bytes) -> int:
    """Bytes that compressed ones may become."""
    return max(2**20, MAX_RATIO * len(compressed))
