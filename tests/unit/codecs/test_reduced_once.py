"""An object is asked once for its pickled form, wherever it travels."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import atasks
from atasks import Codec, EncodeError, ZstdCodec
from atasks.codecs.pickle import PickleCodec
from atasks.tasks import atask
from atasks.testing import soon
from tests.unit.serving import serve


class Counted:
    times = 0

    def __reduce__(self) -> Any:
        Counted.times += 1
        return Counted, ()


class WithState:
    def __getstate__(self) -> Any:
        Counted.times += 1
        return {"a": 1}


@pytest.fixture(autouse=True)
def from_nothing() -> None:
    Counted.times = 0


def closure() -> Callable[[], int]:
    number = 1
    return lambda: number


def local_class() -> type:
    @dataclasses.dataclass
    class Point:
        x: int = 0

        @property
        def twice(self) -> int:
            return 2 * self.x

    return Point


BESIDE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a lambda": lambda: lambda: 1,
    "a closure": closure,
    "a local class": local_class,
    "an instance of it": lambda: local_class()(2),
    "a view": lambda: {"a": 1}.keys(),
    "a module": lambda: dataclasses,
    "a memoryview": lambda: memoryview(b"abc"),
}


@pytest.mark.parametrize("kind", [Counted, WithState])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("make", [atasks.CloudpickleCodec, lambda name: ZstdCodec(namespace=name, threshold=1)])
async def test_beside_what_travels_by_value(
    beside: str, kind: type, make: Callable[[str], Codec], namespace: str
) -> None:
    codec = make(namespace)
    content = await codec.encode(((kind(), BESIDE[beside]()), {}))
    assert Counted.times == 1
    (first, _), _ = await codec.decode(content)
    assert type(first) is kind


@pytest.mark.parametrize("codec", [atasks.CloudpickleCodec, PickleCodec])
@pytest.mark.parametrize("bad", [threading.Lock, lambda: (number for number in "ab")])
async def test_beside_what_cannot_travel(bad: Callable[[], Any], codec: Any, namespace: str) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        await codec(namespace).encode((Counted(), bad()))
    assert Counted.times == 1


async def test_arguments_results_items_and_exceptions(namespace: str) -> None:
    @atask(namespace=namespace)
    async def take(*values: Any) -> None:
        assert type(values[0]) is Counted

    @atask(namespace=namespace)
    async def give() -> Any:
        return Counted(), lambda: 1

    @atask(namespace=namespace)
    async def items() -> AsyncIterator[Any]:
        yield Counted(), lambda: 1

    @atask(namespace=namespace)
    async def fail() -> None:
        raise LookupError(Counted(), lambda: 1)

    async with serve(namespace):
        await soon(take(Counted(), lambda: 1))
        assert Counted.times == 1
        assert (await soon(give()))[1]() == 1
        assert Counted.times == 2
        assert [item[1]() async for item in items()] == [1]
        assert Counted.times == 3
        with pytest.raises(LookupError):
            await soon(fail())
        assert Counted.times == 4


@pytest.mark.parametrize("codec", [atasks.CloudpickleCodec, PickleCodec])
async def test_what_cannot_travel_is_found_without_another_try(codec: Any, namespace: str) -> None:
    codec(namespace)

    @atask(namespace=namespace)
    async def take(*values: Any, **named: Any) -> None: ...

    @atask(namespace=namespace)
    async def give() -> Any:
        return Counted(), {"lock": [threading.Lock()]}

    async with serve(namespace):
        with pytest.raises(EncodeError, match=r"argument values\[1\]\['lock'\] of .*lock"):
            await soon(take(Counted(), {"lock": threading.Lock()}))
        assert Counted.times == 1
        with pytest.raises(EncodeError, match=r"argument last\[2\] of .*lock"):
            await soon(take(Counted(), last=[1, 2, threading.Lock()]))
        assert Counted.times == 2
        with pytest.raises(EncodeError, match=r"at \[1\]\['lock'\]\[0\] .*lock"):
            await soon(give())
        assert Counted.times == 3


async def test_functions_of_one_module_share_their_globals(namespace: str, script: Callable[..., str]) -> None:
    text = """
        import asyncio, sys
        from atasks import CloudpickleCodec

        namespace = {"__name__": "elsewhere", "total": 0}
        exec("def add(n):\\n    global total\\n    total += n\\ndef read(): return total", namespace)
        codec = CloudpickleCodec()
        assert "cloudpickle" not in sys.modules
        content = asyncio.run(codec.encode([namespace["add"], namespace["read"]]))
        add, read = asyncio.run(codec.decode(content))
        add(2)
        print(read(), namespace["total"])
    """
    assert script(text) == "2 0"
