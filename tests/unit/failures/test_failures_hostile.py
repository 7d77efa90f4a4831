"""Failures from classes that refuse to be looked at, of any size, and from a peer that sends what it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from atasks import Codec, RemoteError, RemoteTraceback
from atasks.failures.failures import Failure, Node, decode_failure, encode_failure
from atasks.failures.values import Kind
from tests.unit.failures.exceptions import CODECS, HOP, raised, through


class Hostile(Exception):
    def __str__(self) -> str:
        raise ValueError("no str")

    __repr__ = __str__

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise ValueError("no args")


class NoAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)


class NoDict(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise ValueError("no dict")


class NoCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise ValueError("no cause")


class NoEnd(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)

    def __reduce__(self) -> Any:
        raise SystemExit(2)


class NoTruth(Exception):
    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("no bool")

    def __eq__(self, other: object) -> bool:
        raise ValueError("no eq")


class OddText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise ValueError("no len")


class OddStr(Exception):
    def __str__(self) -> str:
        return OddText("odd")


class NoNames(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


HOSTILE: dict[str, Callable[[], Exception]] = {  # instances and classes would be asked for names by pytest
    "args": lambda: Hostile("x"),
    "dict": lambda: NoDict("x"),
    "attributes": lambda: NoAttributes("x"),
    "cause": lambda: NoCause("x"),
    "str and reduce": lambda: NoEnd("x"),
    "bool and eq": lambda: NoTruth("x"),
    "odd str": lambda: OddStr("x"),
    "class": lambda: NoNames("NoClass", (Exception,), {})("x"),
}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    made: Codec = request.param(namespace)
    return made


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_classes_are_survived(codec: Codec, kind: str) -> None:
    error = HOSTILE[kind]()
    rebuilt = await through(raised(error), codec)
    assert type(rebuilt) in (type(error), RemoteError)
    assert vars(BaseException)["__dict__"].__get__(rebuilt)["__notes__"][-1] == HOP
    group = await through(raised(ExceptionGroup("m", [HOSTILE[kind](), KeyError("k")])), codec)
    assert group.__notes__ == [HOP]
    assert isinstance(group, RemoteError) or type(group.exceptions[1]) is KeyError  # type: ignore[attr-defined]


async def test_notes_that_are_none(codec: Codec) -> None:
    error = ValueError("x")
    error.__notes__ = [1, NoEnd(), "\ud800"]  # type: ignore[list-item]
    assert (await through(error, codec)).__notes__ == ["1", "<str() of this NoEnd failed>", "\\ud800", HOP]
    error.__notes__ = 5  # type: ignore[assignment]
    assert (await through(error, codec)).__notes__ == ["5", HOP]


async def test_circles_and_long_chains_end(codec: Codec) -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__context__, second.__context__ = second, first
    assert (await through(first, codec)).args in [("1",), ["1"]]
    error: Exception = ValueError("0")
    for number in range(2000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    content = await encode_failure(error, codec, hop=HOP)
    assert len(content) < 1_000_000
    assert str(await decode_failure(content, codec)) == "1999"


async def test_sizes_are_bounded(codec: Codec) -> None:
    error = RemoteErrorLike("\U0001f600" * 1_000_000)
    for number in range(100):
        error.add_note(f"{number} " + "n" * 10_000)
    rebuilt = await through(raised(error), codec)
    assert len(rebuilt.__notes__) <= 33
    assert all(len(note) <= 4096 for note in rebuilt.__notes__)
    assert rebuilt.__notes__[-1] == HOP
    assert isinstance(rebuilt.__cause__, RemoteTraceback)
    assert len(rebuilt.__cause__.text) <= 65_536
    described = await through(raised(BaseException("\ud800" * 1_000_000)), codec)
    assert isinstance(described, RemoteError)
    assert 4096 < len(described.message) <= 8192


class RemoteErrorLike(Exception):
    pass


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x91\x90", b"\x90", b"\x81\xa1a\x01"])
async def test_bytes_that_are_no_failure(codec: Codec, content: bytes) -> None:
    assert isinstance(await decode_failure(content, codec), RemoteError)


@pytest.mark.parametrize(
    ("module", "qualname"),
    [("builtins", "SystemExit"), ("builtins", "int"), ("builtins", "print"), ("no.such", "Error"), ("", "")],
)
async def test_only_exceptions_are_rebuilt(codec: Codec, module: str, qualname: str) -> None:
    values = await codec.encode([[], {}])
    content = msgspec.msgpack.encode(Failure([Node(Kind.STATE, module, qualname, "m", values)]))
    rebuilt = await decode_failure(content, codec)
    assert isinstance(rebuilt, RemoteError)
    assert (rebuilt.type_name, rebuilt.message) == (f"{module}.{qualname}", "m")


async def test_references_cannot_make_a_circle(codec: Codec) -> None:
    values = await codec.encode([["m"], {}])
    first = Node(Kind.STATE, "builtins", "ExceptionGroup", "m", values, cause=1, context=0, members=[0, 1, 900])
    second = Node(Kind.STATE, "builtins", "StopIteration", "m", values, cause=0, context=1)
    rebuilt = await decode_failure(msgspec.msgpack.encode(Failure([first, second])), codec)
    assert type(rebuilt) is RuntimeError  # a future takes no StopIteration
    assert isinstance(rebuilt.__cause__, StopIteration)
    assert isinstance(rebuilt.__cause__.__cause__, RemoteError)  # a group without members
    assert rebuilt.__cause__.__cause__.__cause__ is None


class NoClass(Exception):
    asked = False

    @property
    def __class__(self) -> Any:
        if NoClass.asked:
            raise ValueError("no class")
        return NoClass


async def test_what_arrives_is_not_asked_what_it_is(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    content = await encode_failure(raised(NoClass("x")), codec, hop=HOP)
    monkeypatch.setattr(NoClass, "asked", True)
    assert type(await decode_failure(content, codec)) in (NoClass, RemoteError)
