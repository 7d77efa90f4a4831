"""The codecs: what each takes, what arrives, and what they say of what they cannot take."""

from __future__ import annotations

import datetime as dt
import enum
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

import atasks
from atasks import CloudpickleCodec, Codec, DecodeError, EncodeError, MsgpackCodec, PickleCodec, atask, get_codec

PLAIN = [
    ((1, 2.5, "three", b"four", None, True), {"five": [6, {"seven": (8,)}]}),
    (("ü" * 1000,), {}),
    ((b"\x93" * 100_000, b"__main__"), {}),
]


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: float = 0.0


class Order(msgspec.Struct):
    id: uuid.UUID
    at: dt.datetime
    points: list[Point]
    colour: Colour = Colour.RED


@pytest.fixture(params=[PickleCodec, CloudpickleCodec])
def pickling(request: pytest.FixtureRequest, namespace: str) -> Codec:
    codec: Codec = request.param(namespace)
    return codec


@pytest.mark.parametrize("value", PLAIN, ids=["mixed", "text", "bytes that look like references"])
async def test_pickles_return_what_they_were_given(pickling: Codec, value: Any) -> None:
    assert await pickling.decode(await pickling.encode(value)) == value


async def test_pickles_take_importable_classes_by_reference(pickling: Codec) -> None:
    content = await pickling.encode((Point(1), Colour.RED, Point))
    assert await pickling.decode(content) == (Point(1), Colour.RED, Point)
    assert len(content) < 200


async def test_plain_data_is_pickled_by_the_standard_library(namespace: str) -> None:
    for value in PLAIN[:2]:
        assert await CloudpickleCodec(namespace).encode(value) == pickle.dumps(value, 5)


async def test_cloudpickle_takes_what_cannot_be_imported(namespace: str) -> None:
    codec = CloudpickleCodec(namespace)
    base = 40

    class Local:
        value = 7

    add, kind, number = await codec.decode(await codec.encode((lambda n: n + base, Local, 1)))
    assert (add(2), kind.value, number) == (42, 7, 1)
    assert kind is Local  # by value, and the same class again in the process that defined it


async def test_pickle_refuses_what_cannot_be_imported(namespace: str) -> None:
    PickleCodec(namespace)

    @atask(namespace=namespace)
    async def apply(function: Callable[[], int]) -> int:
        return function()

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(EncodeError, match="cannot be encoded by pickle"):
            await apply(lambda: 1)


@pytest.mark.parametrize("protocol", [3, 99])
def test_pickle_protocols(namespace: str, protocol: int) -> None:
    with pytest.raises(ValueError, match=f"pickle protocol {protocol}"):
        PickleCodec(namespace, protocol=protocol)


@pytest.mark.parametrize("codec", ["PickleCodec", "CloudpickleCodec"])
def test_classes_of_the_script_are_written_by_its_name(script: Callable[..., str], codec: str) -> None:
    out = script(
        f"""
        import asyncio, pickle, pickletools
        from atasks import {codec}

        class Thing:
            pass

        def work():
            return 1

        async def main():
            codec = {codec}()
            content = await codec.encode([Thing(), work, Thing])
            assert b"_main__" not in content, content
            assert b"shop" in content
            thing, function, kind = await codec.decode(content)
            assert type(thing) is Thing is kind and function is work
            print("ok")

        asyncio.run(main())
        """,
        name="shop.py",
    )
    assert out == "ok"


def test_closures_of_a_script_travel_by_value(script: Callable[..., str]) -> None:
    out = script(
        """
        import asyncio
        from atasks import CloudpickleCodec

        def adder(n):
            return lambda m: m + n

        async def main():
            codec = CloudpickleCodec()
            print((await codec.decode(await codec.encode(adder(2))))(40))

        asyncio.run(main())
        """
    )
    assert out == "42"


async def test_the_default_is_cloudpickle(namespace: str) -> None:
    assert type(get_codec(namespace)) is CloudpickleCodec
    chosen = MsgpackCodec(namespace)
    assert get_codec(namespace) is chosen


# -- MessagePack


async def test_arguments_and_results_arrive_as_annotated(namespace: str) -> None:
    MsgpackCodec(namespace)

    @atask(namespace=namespace)
    async def book(order: Order, *points: Point, when: dt.date, **more: set[int]) -> tuple[Order, Colour]:
        assert type(order) is Order
        assert type(order.points[0]) is Point
        assert type(order.id) is uuid.UUID
        assert [type(point) for point in points] == [Point, Point]
        assert when == dt.date(2026, 1, 2)
        assert more == {"a": {1, 2}}
        return order, order.colour

    order = Order(uuid.uuid4(), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), [Point(1, 2.5)])
    async with atasks.connect("loopback:", namespace=namespace):
        result = await book(order, Point(1), Point(2), when=dt.date(2026, 1, 2), a={1, 2})
    assert result == (order, Colour.RED)
    assert type(result) is tuple
    assert type(result[0]) is Order


async def test_without_annotations_plain_data_arrives(namespace: str) -> None:
    MsgpackCodec(namespace)

    @atask(namespace=namespace)
    async def show(value, *, key=None):  # type: ignore[no-untyped-def]
        return [value, key]

    async with atasks.connect("loopback:", namespace=namespace):
        assert await show(Point(1, 2.0), key=b"x") == [{"x": 1, "y": 2.0}, b"x"]


async def test_a_wrong_type_names_the_argument_and_the_atask(namespace: str) -> None:
    MsgpackCodec(namespace)

    @atask(namespace=namespace, name="shop.move")
    async def move(by: int, points: list[Point]) -> None: ...

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(DecodeError, match=r"'by' of .*move.*Expected `int`, got `str`"):
            await move("far", [])  # type: ignore[arg-type]
        with pytest.raises(DecodeError, match=r"'points' of .*move.*Expected `int`, got `str`.*\$\[1\]\.x"):
            await move(1, [Point(1), {"x": "no"}])  # type: ignore[list-item]
        assert await move(1, [Point(2)]) is None  # type: ignore[func-returns-value]


async def test_a_result_of_another_type_than_announced(namespace: str) -> None:
    MsgpackCodec(namespace)

    @atask(namespace=namespace)
    async def count() -> int:
        return "many"  # type: ignore[return-value]

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(DecodeError, match=r"the result of .*count.*Expected `int`, got `str`"):
            await count()


async def test_what_messagepack_cannot_hold(namespace: str) -> None:
    MsgpackCodec(namespace)

    @atask(namespace=namespace)
    async def echo(value: Any) -> Any:
        return object() if value == "object" else value

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(EncodeError, match=r"builtins\.object.*CloudpickleCodec"):
            await echo(object())
        with pytest.raises(EncodeError, match="object"):
            await echo("object")  # the result
        assert await echo(1) == 1


async def test_exceptions_under_messagepack(namespace: str) -> None:
    MsgpackCodec(namespace)

    class Local(Exception):
        pass

    @atask(namespace=namespace)
    async def fail(kind: str) -> None:
        if kind == "local":
            raise Local("here only")
        if kind == "value":
            raise KeyError(object())
        raise FileNotFoundError(2, "no such file", "x.txt")

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(FileNotFoundError) as caught:
            await fail("file")
        assert (caught.value.errno, caught.value.filename, caught.value.args) == (2, "x.txt", (2, "no such file"))
        with pytest.raises(atasks.RemoteError, match="Local: here only"):
            await fail("local")
        with pytest.raises(atasks.RemoteError, match="KeyError"):
            await fail("value")
