"""Random values and random exceptions, over loopback with each codec: they survive, or are refused by name."""

from __future__ import annotations

import asyncio
import pickle
import threading
import uuid
from collections.abc import Callable
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import atasks
from atasks import CloudpickleCodec, Codec, EncodeError, MsgpackCodec, PickleCodec, RemoteError, ZstdCodec, atask
from atasks.namespaces import namespaces

MAKE: dict[str, Callable[[str], Codec]] = {
    "cloudpickle": CloudpickleCodec,
    "pickle": PickleCodec,
    "msgpack": MsgpackCodec,
    "zstd": lambda namespace: ZstdCodec(MsgpackCodec(namespace), threshold=10),
}
CASES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class TwoNeeded(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one!r}")
        self.two = two


class KeywordNeeded(Exception):
    def __init__(self, *, detail: object) -> None:
        self.detail = detail


class Reduces(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.extra: object = None

    def __reduce__(self) -> Any:
        return Reduces, ()


class RaisesInReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class ReturnsNonsense(Exception):
    def __reduce__(self) -> Any:
        return 5


class Slots(Exception):
    __slots__ = ("left", "right")


class SlotsAndInit(Slots):
    def __init__(self, left: object, right: object) -> None:
        super().__init__("slots")
        self.left = left
        self.right = right


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class NewNeedsTwo(Exception):
    def __new__(cls, one: object, two: object) -> Self:
        return super().__new__(cls, one)

    def __init__(self, one: object, two: object) -> None:
        pass


def slots(left: object, right: object) -> Slots:
    error = Slots(left)
    error.left = left
    error.right = right
    return error


def extra(value: object) -> Reduces:
    error = Reduces(value)
    error.extra = value
    return error


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
bound = st.sampled_from([asyncio.Lock, asyncio.Queue, asyncio.Event, threading.Lock, lambda: (n for n in ())])
leaves = st.one_of(
    st.builds(ValueError, plain, plain),
    st.builds(KeyError, plain),
    st.builds(OSError, st.integers(-200, 200), st.text(max_size=20), st.text(max_size=20)),
    st.builds(UnicodeDecodeError, st.just("utf-8"), st.binary(), st.integers(0, 9), st.integers(0, 9), st.text()),
    st.builds(TwoNeeded, plain, plain),
    st.builds(lambda detail: KeywordNeeded(detail=detail), plain),
    st.builds(extra, plain),
    st.builds(RaisesInReduce, plain),
    st.builds(ReturnsNonsense, plain),
    st.builds(slots, plain, plain),
    st.builds(SlotsAndInit, plain, plain),
    st.builds(Frozen, plain),
    st.builds(NewNeedsTwo, plain, plain),
)


def chained(error: BaseException, cause: BaseException | None, notes: list[str]) -> BaseException:
    BaseException.__setattr__(error, "__cause__", cause)
    for note in notes:
        vars(error).setdefault("__notes__", []).append(note)
    return error


exceptions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(ExceptionGroup, st.text(max_size=10), st.lists(inner, min_size=1, max_size=3)),
        st.builds(chained, inner, inner, st.lists(st.text(max_size=20), max_size=3)),
        st.builds(lambda one, two: TwoNeeded("holds", [one, two]), inner, inner),
    ),
    max_leaves=6,
)


def calls(codec: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call the function over loopback, and return the value or the exception."""
    namespace = f"roundtrip-{uuid.uuid4().hex}"
    MAKE[codec](namespace)
    task = atask(function, namespace=namespace, name="called")

    async def main() -> Any:
        async with atasks.connect("loopback:", namespace=namespace):
            try:
                return await task(*args)
            except Exception as error:
                return error

    try:
        return asyncio.run(main())
    finally:
        namespaces.unregister(namespace)


@pytest.mark.parametrize("codec", MAKE)
@CASES
@given(value=plain)
def test_values_survive_or_are_refused_by_name(codec: str, value: Any) -> None:
    async def echo(value: Any) -> Any:
        return value

    result = calls(codec, echo, value)
    if isinstance(result, EncodeError):
        assert str(result).startswith("argument value")
        assert codec in ("msgpack", "zstd"), "pickles take all plain values"
    else:
        assert result == value


@pytest.mark.parametrize("codec", MAKE)
@CASES
@given(make=bound, path=st.lists(st.sampled_from("ldt"), max_size=4))
def test_what_is_bound_is_refused_by_name(codec: str, make: Callable[[], Any], path: list[str]) -> None:
    async def echo(first: Any, value: Any) -> Any:
        return value

    held: Any = make()
    expected = ""
    for kind in path:
        held = {"l": [1, held], "d": {"key": held}, "t": (held,)}[kind]
        expected = {"l": "[1]", "d": "['key']", "t": "[0]"}[kind] + expected
    result = calls(codec, echo, "fine", held)
    assert isinstance(result, EncodeError)
    assert str(result).startswith(f"argument value{expected}")


@pytest.mark.parametrize("codec", MAKE)
@CASES
@given(error=exceptions)
def test_exceptions_keep_class_text_and_members(codec: str, error: Exception) -> None:
    async def fail() -> None:
        raise error

    check(calls(codec, fail), error)


@pytest.mark.parametrize("codec", MAKE)
@CASES
@given(error=exceptions, make=bound)
def test_exceptions_that_hold_what_is_bound_keep_their_class(
    codec: str, error: Exception, make: Callable[[], Any]
) -> None:
    async def fail() -> None:
        vars(error)["bound"] = make()
        raise error

    result = calls(codec, fail)
    check(result, error)
    if not isinstance(result, RemoteError):
        assert not hasattr(result, "bound")
        assert any(note.startswith("atasks: left behind at the worker: ") for note in result.__notes__)


def check(result: Any, error: BaseException) -> None:
    if isinstance(result, RemoteError):  # what MessagePack cannot hold in a field of Python's own
        assert result.type_name.endswith(type(error).__qualname__)
        return
    assert type(result) is type(error)
    noted = getattr(result, "__notes__", [])
    if not any("left behind" in note for note in noted):
        assert str(result) == str(error) or isinstance(error, UnicodeDecodeError)
    if isinstance(error, BaseExceptionGroup):
        assert len(result.exceptions) == len(error.exceptions)
        for member, original in zip(result.exceptions, error.exceptions, strict=True):
            check(member, original)


SCRATCH = bytearray(100 * 1024)


class Sharing:
    """An object that is pickled by way of memory which all of its kind share."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> Any:
        SCRATCH[:] = self.content
        return bytes, (pickle.PickleBuffer(SCRATCH),)


@pytest.mark.parametrize("kind", [CloudpickleCodec, PickleCodec])
async def test_objects_that_are_pickled_by_way_of_the_same_memory(
    kind: type[CloudpickleCodec | PickleCodec], namespace: str
) -> None:
    codec = kind(namespace)
    contents = [bytes([letter]) * len(SCRATCH) for letter in b"abc"]
    found = await codec.decode(await codec.encode([Sharing(content) for content in contents]))
    assert found == contents
