"""The memory of arrays is copied once where nothing can write to it meanwhile, and before other code runs."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from atasks import Codec
from atasks.codecs.cloudpickle import CloudpickleCodec
from atasks.codecs.pickle import PickleCodec

SIZE = 2**20


class ndarray:
    """Stands for NumPy's arrays, as far as pickles know them: its memory is written without a copy."""

    def __init__(self, fill: int, kind: str = "u", number: int = 2, metadata: Any = None) -> None:
        self.dtype = SimpleNamespace(kind=kind, num=number, metadata=metadata)
        self.memory = bytearray([fill]) * SIZE

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(self.memory),)


class Writing:
    """Writes to an array while it is pickled."""

    def __init__(self, array: ndarray) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        self.array.memory[:] = bytes(SIZE)
        return str, ("written",)


class Items(list[Any]):
    """Writes to an array while its items are pickled, between two of them."""

    def __reduce__(self) -> Any:
        def each() -> Any:
            for number, item in enumerate(self):
                yield item
                if number:  # pickle has taken it, which asks for the second one before it takes the first
                    item.memory[:] = bytes(SIZE)

        return list, (), None, each()


@pytest.fixture(params=[CloudpickleCodec, PickleCodec])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Codec:
    """The codec, in a process that has imported NumPy, so to speak."""
    numpy = ModuleType("numpy")
    numpy.ndarray = ndarray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    return request.param("memory-of-arrays")  # type: ignore[no-any-return]


async def peak(codec: Codec, value: Any) -> float:
    """The memory that encoding the value takes at most, for each byte of what comes out."""
    tracemalloc.start()
    try:
        content = await codec.encode(value)
        return tracemalloc.get_traced_memory()[1] / len(content)
    finally:
        tracemalloc.stop()


async def test_an_array_is_copied_once(codec: Codec) -> None:
    """Try a result, arguments, and containers."""
    one = ndarray(1)
    for value in (one, ((one, "text"), {"n": 7}), {"a": [one], "b": (ndarray(2), None)}):
        await codec.encode(value)  # imports what it needs
        assert await peak(codec, value) < 1.2


@pytest.mark.parametrize(
    "array",
    [ndarray(1, "V", 20), ndarray(1, "f", 300), ndarray(1, metadata={"of": object})],
    ids=["structures", "types of others", "notes"],
)
async def test_an_array_of_items_that_may_be_objects_is_copied_at_once(codec: Codec, array: ndarray) -> None:
    await codec.encode(array)
    assert await peak(codec, array) > 1.8


async def test_what_is_written_while_others_are_pickled_comes_too_late(codec: Codec) -> None:
    array = ndarray(1)
    found = await codec.decode(await codec.encode([array, Writing(array)]))
    assert found == [b"\1" * SIZE, "written"]


async def test_what_is_written_between_two_items_comes_too_late(codec: Codec) -> None:
    found = await codec.decode(await codec.encode(Items(ndarray(number) for number in range(1, 4))))
    assert found == [bytes([number]) * SIZE for number in range(1, 4)]


async def test_what_a_deep_or_long_container_has_is_copied_at_once(codec: Codec) -> None:
    """To look through it would take longer than to copy."""
    array = ndarray(1)
    assert await peak(codec, [[[[[[array]]]]]]) > 1.8
    assert await peak(codec, [array, *range(1000)]) > 1.8
