"""Values: what goes to an atask, and what comes back."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from atasks import DecodeError, EncodeError, MsgpackCodec, PayloadTooLarge, get_codec
from atasks.namespaces import namespaces
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["ValueCases"]


class Undecodable:
    """Encodes, and raises when it is decoded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ("a secret",)


def _refuse(text: str) -> None:
    raise LookupError("this cannot be decoded")


class ValueCases(Cases):
    """The await gives what the atask returned, or says why it cannot."""

    async def test_value(self, site: Site) -> None:
        @site.atask
        async def add(a: int, b: int) -> int:
            return a + b

        async with site.open():
            assert await soon(add(1, 2)) == 3

    async def test_plain_values_come_back_equal(self, site: Site) -> None:
        @site.atask
        async def echo(value: Any) -> Any:
            return value

        numbers = [True, -1, 2**80, 1.5, float("inf")]
        texts = ["", "Grüße \N{SNOWMAN}", "a\x00b", b"", b"\x00\xff"]
        containers = [[1, [2]], (1, "a"), {"a": {1: None}}, {1, 2}, []]
        async with site.open():
            for value in [None, *numbers, *texts, *containers]:
                result = await soon(echo(value))
                assert result == value
                assert type(result) is type(value)

    async def test_values_are_copies(self, site: Site) -> None:
        seen = []

        @site.atask
        async def keep(value: list[int]) -> list[int]:
            seen.append(value)
            value.append(2)
            return value

        async with site.open():
            mine = [1]
            result = await soon(keep(mine))
            assert (mine, result) == ([1], [1, 2])
            assert seen[0] is not mine
            assert result is not seen[0]

    async def test_arguments_arrive_as_they_were_written(self, site: Site) -> None:
        @site.atask
        async def show(a: int, /, b: int = 2, *rest: int, name: int, other: int = 5, **more: int) -> Any:
            return [a, b, list(rest), name, other, more]

        async with site.open():
            assert await soon(show(1, name=4)) == [1, 2, [], 4, 5, {}]
            assert await soon(show(1, 7, 8, 9, name=4, other=6, x=1)) == [1, 7, [8, 9], 4, 6, {"x": 1}]

    async def test_wrong_arguments_are_refused_at_the_call(self, site: Site) -> None:
        ran = []

        @site.atask
        async def add(a: int, b: int) -> None:
            ran.append((a, b))

        async with site.open():
            with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
                add(1)  # type: ignore[call-arg, unused-coroutine]
            await soon(add(1, 2))
            assert ran == [(1, 2)]

    async def test_function_that_is_not_a_coroutine(self, site: Site) -> None:
        @site.atask
        def plain(a: int) -> int:
            return a + 1

        @site.atask
        def future(a: int) -> asyncio.Future[int]:
            found = asyncio.get_running_loop().create_future()
            found.get_loop().call_soon(found.set_result, a + 2)
            return found

        async with site.open():
            assert await soon(plain(1)) == 2
            assert await soon(future(1)) == 3

    async def test_gather_of_many(self, site: Site) -> None:
        @site.atask
        async def double(n: int) -> int:
            return 2 * n

        async with site.open():
            results = await soon(asyncio.gather(*(double(n) for n in range(1000))))
            assert results == [2 * n for n in range(1000)]

    async def test_big_value(self, site: Site) -> None:
        @site.atask
        async def turn(data: bytes) -> bytes:
            return data[::-1]

        async with site.open():
            data = bytes(range(256)) * 4096
            assert await soon(turn(data)) == data[::-1]

    async def test_arguments_too_large(self, site: Site) -> None:
        ran = []

        @site.atask
        async def length(data: bytes) -> int:
            ran.append(len(data))
            return len(data)

        async with site.open():
            site.caller.max_payload = 1000
            with pytest.raises(PayloadTooLarge, match=r"over the limit of 1000"):
                await soon(length(bytes(1000)))
            assert await soon(length(bytes(100))) == 100
            assert ran == [100]

    async def test_result_too_large(self, site: Site) -> None:
        @site.atask
        async def make(size: int) -> bytes:
            return bytes(size)

        async with site.open():
            site.worker.transport.max_payload = 1000
            with pytest.raises(PayloadTooLarge, match=r"the result .* over the limit of 1000"):
                await soon(make(1000))
            assert await soon(make(100)) == bytes(100)

    async def test_argument_that_cannot_be_encoded(self, site: Site) -> None:
        ran = []

        @site.atask
        async def take(value: Any) -> None:
            ran.append(value)

        async with site.open():
            with pytest.raises(EncodeError, match="argument") as caught:
                await soon(take(threading.Lock()))
            assert isinstance(caught.value, TypeError)
            await soon(take(1))
            assert ran == [1]

    async def test_result_that_cannot_be_encoded(self, site: Site) -> None:
        @site.atask
        async def lock(wanted: bool) -> Any:
            return threading.Lock() if wanted else "none"

        async with site.open(concurrency=1):
            with pytest.raises(EncodeError, match=r"the result of .*lock"):
                await soon(lock(True))
            assert await soon(lock(False)) == "none"

    async def test_argument_that_cannot_be_decoded(self, site: Site) -> None:
        ran = []

        @site.atask
        async def take(value: Any) -> None:
            ran.append(value)

        async with site.open(concurrency=1):
            with pytest.raises(DecodeError, match=r"the arguments of .*take") as caught:
                await soon(take(Undecodable()))
            assert "secret" not in str(caught.value)
            await soon(take(1))
            assert ran == [1]

    async def test_result_that_cannot_be_decoded(self, site: Site) -> None:
        @site.atask
        async def give() -> Any:
            return Undecodable()

        async with site.open():
            with pytest.raises(DecodeError, match=r"the result of .*give") as caught:
                await soon(give())
            assert "secret" not in str(caught.value)

    async def test_codecs_that_differ(self, site: Site) -> None:
        ran = []

        @site.atask
        async def run() -> None:
            ran.append(1)

        mine = get_codec(site.namespace)
        other = MsgpackCodec(site.namespace)
        namespaces.register(site.namespace, codec=mine)
        async with site.open(serve=False):
            await site.serve(codec=other)
            with pytest.raises(DecodeError, match=f"(?s)(?=.*'{mine.name}')(?=.*'{other.name}')"):
                await soon(run())
            assert ran == []
