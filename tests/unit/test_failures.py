"""Exceptions to bytes and back: types, values, chains, groups, and whatever classes may do."""

from __future__ import annotations

import asyncio
import gc
import json
import traceback
import weakref
from typing import Any

import pytest

from atasks import CloudpickleCodec, Codec, MsgpackCodec, PickleCodec, RemoteError, RemoteTraceback, WorkerLost
from atasks.failures import decode_failure, encode_failure

HOP = "atasks: task 'shop.add', call 3f-1, host web1, pid 42"


class TwoArguments(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Slotted(Exception):
    __slots__ = ("extra",)

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra


class Keeper(Exception):
    """Says itself how it is pickled."""

    def __init__(self, *, limit: int) -> None:
        super().__init__("over")
        self.limit = limit

    def __reduce__(self) -> Any:
        return _keeper, (self.limit,)


def _keeper(limit: int) -> Keeper:
    return Keeper(limit=limit)


class Hostile(Exception):
    def __str__(self) -> str:
        raise ValueError("no str")

    __repr__ = __str__

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise ValueError("no args")


class MyGroup(ExceptionGroup[Exception]):
    pass


class Json(Codec):
    """A user's codec: asynchronous, and tuples become lists."""

    async def encode(self, obj: Any) -> bytes:
        await asyncio.sleep(0)
        return json.dumps(obj).encode()

    async def decode(self, content: bytes) -> Any:
        await asyncio.sleep(0)
        return json.loads(content)


CODECS = [PickleCodec, CloudpickleCodec, MsgpackCodec, Json]


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    made: Codec = request.param(namespace)
    return made


def raised(error: BaseException) -> BaseException:
    """The exception, with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


async def through(error: BaseException, codec: Codec) -> BaseException:
    return await decode_failure(await encode_failure(error, codec, hop=HOP), codec)


SAME = [
    ValueError("a", 1),
    KeyError("k"),
    TwoArguments(7, "full"),
    FileNotFoundError(2, "No such file", "x.txt"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ImportError("gone", name="m", path="p"),
    NameError("n", name="n"),
    SyntaxError("bad", ("f.py", 3, 4, "x = ", 3, 5)),
    WorkerLost("gone", 3),
    RemoteError("a.B", "m", "tb"),
    Exception(),
]


@pytest.mark.parametrize("error", SAME, ids=lambda error: type(error).__name__)
async def test_type_args_and_attributes(codec: Codec, error: Exception) -> None:
    if isinstance(error, UnicodeDecodeError) and isinstance(codec, Json):
        error = ValueError("bytes are not JSON")
    rebuilt = await through(raised(error), codec)
    assert type(rebuilt) is type(error)
    assert rebuilt.args == error.args or (isinstance(codec, (Json, MsgpackCodec)) and str(rebuilt) == str(error))
    for name in ("code", "detail", "errno", "filename", "object", "reason", "name", "path", "lineno", "attempts"):
        assert getattr(rebuilt, name, None) == getattr(error, name, None)
    assert str(rebuilt) == str(error)


async def test_attributes_that_were_added(codec: Codec) -> None:
    error = ValueError("x")
    error.hint = ["try", 2]  # type: ignore[attr-defined]
    assert (await through(error, codec)).hint == ["try", 2]  # type: ignore[attr-defined]


async def test_slots(codec: Codec) -> None:
    rebuilt = await through(Slotted(5), codec)
    assert isinstance(rebuilt, Slotted)
    assert rebuilt.extra == 5


async def test_a_class_that_says_how_it_is_pickled(namespace: str) -> None:
    rebuilt = await through(raised(Keeper(limit=3)), CloudpickleCodec(namespace))
    assert isinstance(rebuilt, Keeper)
    assert rebuilt.limit == 3


async def test_a_local_class_is_the_same_class_in_one_process(namespace: str) -> None:
    class Local(Exception):
        pass

    assert type(await through(Local("x"), CloudpickleCodec(namespace))) is Local
    assert isinstance(await through(Local("x"), PickleCodec(namespace)), RemoteError)


async def test_what_cannot_be_encoded_is_described(codec: Codec) -> None:
    rebuilt = await through(raised(ValueError("x", (n for n in ()))), codec)
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.type_name == "builtins.ValueError"
    assert "in raised" in rebuilt.traceback


async def test_a_class_that_is_missing_here(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    content = await encode_failure(raised(TwoArguments(1, "x")), codec, hop=HOP)
    monkeypatch.delattr(f"{__name__}.TwoArguments")
    rebuilt = await decode_failure(content, codec)
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.type_name.endswith("TwoArguments")
    assert rebuilt.message == "1: x"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("b")])
async def test_what_would_end_the_program_is_described(codec: Codec, error: BaseException) -> None:
    rebuilt = await through(raised(error), codec)
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.type_name == f"builtins.{type(error).__name__}"


async def test_stop_iteration_is_what_local_code_would_get(codec: Codec) -> None:
    rebuilt = await through(raised(StopIteration(1)), codec)
    assert type(rebuilt) is RuntimeError
    assert str(rebuilt) == "coroutine raised StopIteration"


async def test_causes_contexts_and_notes(codec: Codec) -> None:
    try:
        try:
            try:
                raise KeyError("first")
            except KeyError as error:
                error.add_note("of the first")
                raise TwoArguments(1, "second") from error
        except TwoArguments:
            raise ValueError("third")  # noqa: B904  # the context is the point
    except ValueError as error:
        error.add_note("of the third")
        rebuilt = await through(error, codec)
    assert type(rebuilt) is ValueError
    assert rebuilt.__cause__ is None
    assert not rebuilt.__suppress_context__
    assert rebuilt.__notes__ == ["of the third", HOP]
    second = rebuilt.__context__
    assert isinstance(second, TwoArguments)
    first = second.__cause__
    assert isinstance(first, KeyError)
    assert first.__notes__ == ["of the first"]
    assert isinstance(first.__cause__, RemoteTraceback)
    assert "test_causes_contexts_and_notes" in str(first.__cause__)


async def test_suppressed_contexts_stay_suppressed(codec: Codec) -> None:
    try:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None
    except ValueError as error:
        rebuilt = await through(error, codec)
    assert rebuilt.__suppress_context__
    assert isinstance(rebuilt.__cause__, RemoteTraceback)
    assert "hidden" not in "".join(traceback.format_exception(rebuilt))


async def test_groups(codec: Codec) -> None:
    inner = BaseExceptionGroup("inner", [TwoArguments(1, "x"), SystemExit(2)])
    rebuilt = await through(raised(BaseExceptionGroup("outer", [MyGroup("mine", [KeyError("k")]), inner])), codec)
    assert isinstance(rebuilt, BaseExceptionGroup)
    assert rebuilt.message == "outer"
    mine, group = rebuilt.exceptions
    assert type(mine) is MyGroup
    assert [type(item) for item in mine.exceptions] == [KeyError]
    assert isinstance(mine.exceptions[0].__cause__, RemoteTraceback)
    assert isinstance(group, BaseExceptionGroup)
    assert [type(item) for item in group.exceptions] == [TwoArguments, RemoteError]


async def test_each_hop_adds_a_note_and_its_traceback(namespace: str) -> None:
    codec = CloudpickleCodec(namespace)
    first = await decode_failure(await encode_failure(raised(ValueError("x")), codec, hop="hop 1"), codec)
    second = await decode_failure(await encode_failure(raised(first), codec, hop="hop 2"), codec)
    assert second.__notes__ == ["hop 1", "hop 2"]
    text = str(second.__cause__)
    assert isinstance(second.__cause__, RemoteTraceback)
    assert second.__cause__.__cause__ is None
    assert text.count("in raised") == 2  # the text of the last hop holds that of the one before


async def test_nothing_is_changed_and_nothing_is_kept(codec: Codec) -> None:
    class Heavy:
        pass

    def fail() -> Exception:
        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        error = raised(ValueError("x"))
        assert isinstance(error, ValueError)
        return error

    alive: list[weakref.ref[Heavy]] = []
    error = fail()
    await encode_failure(error, codec, hop=HOP)
    assert not hasattr(error, "__notes__")
    assert error.__cause__ is None
    del error
    gc.collect()
    assert alive[0]() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_hostile_classes_are_survived(codec: Codec) -> None:
    rebuilt = await through(raised(Hostile()), codec)
    assert isinstance(rebuilt, (Hostile, RemoteError))


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
    error = RemoteErrorLike("x" * 1_000_000)
    for number in range(100):
        error.add_note(f"{number} " + "n" * 10_000)
    rebuilt = await through(raised(error), codec)
    assert len(rebuilt.__notes__) <= 33
    assert all(len(note) <= 4096 for note in rebuilt.__notes__)
    assert rebuilt.__notes__[-1] == HOP


class RemoteErrorLike(Exception):
    pass


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x91\x90", b"\x90", b"\x81\xa1a\x01"])
async def test_bytes_that_are_no_failure(codec: Codec, content: bytes) -> None:
    assert isinstance(await decode_failure(content, codec), RemoteError)


async def test_how_it_prints(namespace: str) -> None:
    codec = CloudpickleCodec(namespace)
    rebuilt = await through(raised(TwoArguments(7, "full")), codec)
    text = "".join(traceback.format_exception(rebuilt))
    head, _, tail = text.partition("The above exception was the direct cause")
    assert head.startswith("atasks.errors.RemoteTraceback: \nTraceback (most recent call last):")
    assert 'test_failures.py"' in head
    assert "in raised" in head
    assert "TwoArguments: 7: full" in tail
    assert HOP in tail
