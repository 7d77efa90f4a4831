"""The codecs: what each takes, what arrives, and what they say of what they cannot take."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import functools
import gc
import pickle
import re
import subprocess
import sys
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

import cloudpickle  # type: ignore[import-untyped]
import msgspec
import pytest

import atasks
from atasks import CloudpickleCodec, Codec, DecodeError, EncodeError, MsgpackCodec, PickleCodec, atask, get_codec

if TYPE_CHECKING:
    from nowhere import Missing

PLAIN = [
    ((1, 2.5, "three", b"four", None, True), {"five": [6, {"seven": (8,)}]}),
    (("ü" * 1000,), {}),
    ((b"\x93" * 100_000, b"__main__"), {}),
]


class Colour(enum.Enum):
    RED = "red"


LARGE = b"\x93" * 100_000


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


SHOP = """
    import asyncio, sys
    from atasks import CloudpickleCodec, PickleCodec

    class Thing:
        def __init__(self, size):
            self.size = size

    if __name__ == "__main__":
        codec = {"pickle": PickleCodec, "cloudpickle": CloudpickleCodec}[CODEC]()
        print(asyncio.run(codec.encode([Thing(3)])).hex())
"""


@pytest.mark.parametrize("codec", ["pickle", "cloudpickle"])
def test_another_process_imports_the_script(script: Callable[..., str], codec: str) -> None:
    content = script(SHOP.replace("CODEC", repr(codec)), name="shop.py")
    out = script(
        f"""
        import asyncio
        from atasks import CloudpickleCodec

        thing, = asyncio.run(CloudpickleCodec().decode(bytes.fromhex("{content}")))
        import shop
        assert type(thing) is shop.Thing
        print(thing.size)
        """,
        name="reader.py",
    )
    assert out == "3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ImportError('no way')", "cannot be imported as 'shop' here .no way."),
        ("", "shop has no Thing here"),
    ],
)
def test_a_script_that_is_another_one_here(script: Callable[..., str], text: str, message: str) -> None:
    content = script(SHOP.replace("CODEC", "'pickle'"), name="shop.py")
    reader = f"""
        import asyncio, re
        from pathlib import Path
        from atasks import DecodeError, PickleCodec

        Path("shop.py").write_text({text!r})
        try:
            asyncio.run(PickleCodec().decode(bytes.fromhex("{content}")))
        except DecodeError as error:
            print("DecodeError:", error)
        """
    assert re.match(f"DecodeError: .*{message}.*both sides", script(reader, name="reader.py"))


@pytest.mark.parametrize("codec", ["PickleCodec", "CloudpickleCodec"])
def test_what_a_prompt_defines(codec: str) -> None:
    """Nothing can import it: it is found where it was defined, and cloudpickle takes it elsewhere by value."""
    code = f"""if True:
        import asyncio, subprocess, sys
        from atasks import {codec}
        class Thing:
            def size(self):
                return 3
        codec = {codec}()
        content = asyncio.run(codec.encode(Thing()))
        assert type(asyncio.run(codec.decode(content))) is Thing
        sys.stdout.buffer.write(content)
        """
    content = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    if codec == "CloudpickleCodec":
        assert pickle.loads(content).size() == 3
    else:
        with pytest.raises(AttributeError, match="Thing"):
            pickle.loads(content)


async def test_modules_that_cloudpickle_was_told_to_take_by_value(namespace: str) -> None:
    codec = CloudpickleCodec(namespace)
    assert b"points" not in await codec.encode(Order)
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        assert b"points" in await codec.encode(Order)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


async def test_values_that_raise_when_they_are_pickled(pickling: Codec) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((RecursionError, pickle.PicklingError), match=r"recursion|Stack overflow"):
        await pickling.encode(deep)
    with pytest.raises(TypeError, match="lock"):
        await pickling.encode(threading.Lock())


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
        with pytest.raises(KeyError, match=r"<builtins\.object, left behind>"):
            await fail("value")


class Settings(TypedDict):
    origin: Point
    scale: NotRequired[float]


async def settled(origin: Point, /, **settings: Unpack[Settings]) -> None: ...


def future_point() -> asyncio.Future[Point]: ...  # type: ignore[empty-body]


def awaitable_point() -> Awaitable[Point]: ...  # type: ignore[empty-body]


async def points() -> AsyncIterator[Point]:
    yield Point(1)


async def anything(value: object, values: dict[str, object]) -> None: ...


async def unusable(missing: Missing, number: complex, some: Iterable[int], fine: int = 0) -> Missing: ...


@pytest.fixture
def msgpack(namespace: str) -> MsgpackCodec:
    return MsgpackCodec(namespace)


async def decoded(codec: Codec, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return await codec.decode_arguments(await codec.encode((args, kwargs)), function)


async def test_keyword_options_by_a_typed_dict(msgpack: MsgpackCodec) -> None:
    args, kwargs = await decoded(msgpack, settled, Point(1), origin=Point(2), scale=1)
    assert (args, kwargs) == ([Point(1)], {"origin": Point(2), "scale": 1.0})
    with pytest.raises(DecodeError, match=r"argument 'scale' of .*settled: Expected `float`, got `str`"):
        await decoded(msgpack, settled, Point(1), scale="x")


@pytest.mark.parametrize("function", [future_point, awaitable_point, points])
async def test_what_is_awaited_or_iterated_has_the_type(
    msgpack: MsgpackCodec, function: Callable[..., Any]
) -> None:
    assert await msgpack.decode_result(await msgpack.encode(Point(1)), function) == Point(1)


async def test_functions_in_disguise(msgpack: MsgpackCodec) -> None:
    class Caller:
        def __call__(self, origin: Point) -> None: ...

    @functools.wraps(settled)
    async def wrapped(*args: Any, **kwargs: Any) -> None: ...

    for function in (functools.partial(settled), Caller(), wrapped):
        assert await decoded(msgpack, function, Point(1)) == ([Point(1)], {})


async def test_a_type_of_the_function_s_closure(msgpack: MsgpackCodec) -> None:
    @dataclass
    class Local:
        x: int

    async def move(by: Local) -> type[Local]:
        return Local

    assert await decoded(msgpack, move, Local(1)) == ([Local(1)], {})


async def test_object_is_anything(msgpack: MsgpackCodec) -> None:
    assert await decoded(msgpack, anything, 1, {"a": [None]}) == ([1, {"a": [None]}], {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "missing",
            r"annotation Missing cannot be resolved \(name 'Missing' is not defined\): define it",
        ),
        ("number", "MsgpackCodec cannot make complex: annotate it with"),
        ("some", "MsgpackCodec cannot make .*Iterable.*: annotate it with"),
    ],
)
async def test_annotations_of_no_use_are_named(msgpack: MsgpackCodec, name: str, message: str) -> None:
    with pytest.raises(DecodeError, match=rf"argument '{name}' of .*test_codecs\.unusable: .*{message}"):
        await decoded(msgpack, unusable, **{name: [1]})
    assert await decoded(msgpack, unusable, fine=1) == ([], {"fine": 1})
    with pytest.raises(DecodeError, match=r"the result of .*unusable: its annotation Missing cannot be resolved"):
        await msgpack.decode_result(b"\xc0", unusable)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x90", b"\x93\x90\x80\x80", b"\x91" * 100_000])
async def test_bytes_that_are_no_arguments(msgpack: MsgpackCodec, content: bytes) -> None:
    with pytest.raises(DecodeError, match=r"not the arguments of a call of .*settled"):
        await msgpack.decode_arguments(content, settled)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**64, "ints"),
        ("\ud800", "lone surrogates"),
        ({Point: 1}, r"builtins\.type"),
        (lambda: 1, r"builtins\.function.*construct a CloudpickleCodec on both sides"),
    ],
)
async def test_what_it_says_of_values_that_do_not_fit(msgpack: MsgpackCodec, value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        await msgpack.encode(((value,), {}))


async def test_functions_are_not_kept_alive(msgpack: MsgpackCodec) -> None:
    async def short_lived(by: int) -> None: ...

    assert await decoded(msgpack, short_lived, 1) == ([1], {})
    gone = weakref.ref(short_lived)
    del short_lived
    gc.collect()
    assert gone() is None
