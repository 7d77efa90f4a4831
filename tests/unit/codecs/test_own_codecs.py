"""Codecs of the user's own: the least that one needs, and what becomes of what is wrong in them."""

from __future__ import annotations

from typing import Any

import pytest

import atasks
from atasks.codecs.base import Codec
from atasks.tasks import atask
from tests.unit.codecs.json_codec import Json


class Broken(Json):
    """Gives or raises what it is told to."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.encodes: list[Any] = []
        self.decodes: list[Any] = []

    async def encode(self, obj: Any) -> bytes:
        return self._next(self.encodes, await super().encode(obj))

    async def decode(self, content: bytes) -> Any:
        return self._next(self.decodes, await super().decode(content))

    def _next(self, planned: list[Any], normal: Any) -> Any:
        what = planned.pop(0) if planned else normal
        if isinstance(what, BaseException):
            raise what
        return normal if what is ... else what


# -- a codec


async def test_a_codec_of_two_methods(namespace: str) -> None:
    codec = Json(namespace)
    assert (codec.name, codec.carries_types) == ("Json", False)

    @atask(namespace=namespace)
    async def show(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs, (1, 2)

    async with atasks.connect(namespace=namespace):
        assert await show(1, (2, 3), key=(4,)) == [[1, [2, 3]], {"key": [4]}, [1, 2]]
        with pytest.raises(atasks.EncodeError, match=r"argument args\[0\] of .*show \(object\) cannot be enc"):
            await show(object())


async def test_the_namespace_takes_a_codec_that_comes_later(namespace: str) -> None:
    @atask(namespace=namespace)
    async def show(value: Any) -> Any:
        return value

    async with atasks.connect(namespace=namespace):
        assert await show((1,)) == (1,)
        Json(namespace)
        assert await show((1,)) == [1]


@pytest.mark.parametrize("wrong", [None, "text", 5, ["list"]])
async def test_a_codec_that_returns_no_bytes(namespace: str, wrong: Any) -> None:
    codec = Broken(namespace)

    @atask(namespace=namespace)
    async def one() -> int:
        return 1

    async with atasks.connect(namespace=namespace):
        for plan in ([wrong], [..., wrong]):  # the arguments, then the result
            codec.encodes = plan
            with pytest.raises(
                atasks.EncodeError, match=f"encode returned {type(wrong).__name__} instead of bytes"
            ):
                await one()
        assert await one() == 1


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_other_kinds_of_bytes_are_bytes(namespace: str, kind: Any) -> None:
    class Other(Json):
        async def encode(self, obj: Any) -> bytes:
            data: bytes = kind(await super().encode(obj))
            return data

    Other(namespace)

    @atask(namespace=namespace)
    async def same(value: Any) -> Any:
        return value

    async with atasks.connect(namespace=namespace):
        assert await same({"a": 1}) == {"a": 1}


async def test_a_codec_that_raises(namespace: str) -> None:
    codec = Broken(namespace)
    ran: list[int] = []

    @atask(namespace=namespace)
    async def one() -> int:
        ran.append(1)
        return 1

    error = RuntimeError("no good\nand more lines")
    async with atasks.connect(namespace=namespace):
        codec.encodes = [error]
        with pytest.raises(
            atasks.EncodeError, match=r"an argument of .*one .*\(RuntimeError: no good\)$"
        ) as caught:
            await one()
        assert caught.value.__cause__ is error
        codec.decodes = [error]
        with pytest.raises(atasks.DecodeError, match=r"the arguments of .*one .*RuntimeError: no good"):
            await one()
        codec.decodes = [5]
        with pytest.raises(atasks.DecodeError, match="the arguments of"):
            await one()
        assert ran == []
        codec.encodes = [..., error]
        with pytest.raises(atasks.EncodeError, match=r"the result of .*one \(int\) cannot be encoded by Broken"):
            await one()
        codec.decodes = [..., error]
        with pytest.raises(atasks.DecodeError, match=r"the result of .*one cannot be decoded by Broken"):
            await one()
        assert await one() == 1
    assert ran == [1, 1, 1]


async def test_a_codec_without_methods_says_what_is_missing(namespace: str) -> None:
    class Empty(Codec):
        pass

    codec = Empty(namespace)
    with pytest.raises(NotImplementedError, match=r"Empty has no encode\(\)"):
        await codec.encode(1)
    with pytest.raises(NotImplementedError, match=r"Empty has no decode\(\)"):
        await codec.decode(b"")
