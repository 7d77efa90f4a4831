"""Exceptions to bytes and back: types, values, chains, groups, and whatever classes may do."""

from __future__ import annotations

import asyncio
import copyreg
import dataclasses
import gc
import re
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Self

import pytest

from atasks import (
    CloudpickleCodec,
    Codec,
    MsgpackCodec,
    PickleCodec,
    RemoteError,
    RemoteTraceback,
    WorkerLost,
    atask,
    connect,
)
from atasks.failures.failures import decode_failure, encode_failure, failure_text
from tests.unit.failures.exceptions import CODECS, HOP, Json, raised, through


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


class MyGroup(ExceptionGroup[Exception]):
    pass


class CodedGroup(ExceptionGroup[Exception]):
    """A group whose constructor takes something else than Python's."""

    code: int

    def __new__(cls, errors: list[Exception], code: int) -> Self:
        made = super().__new__(cls, f"code {code}", errors)
        made.code = code
        return made


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    limit: int


class OwnNew(Exception):
    def __new__(cls, code: int, detail: str) -> Self:
        made = super().__new__(cls, code)
        made.detail = detail
        return made

    def __init__(self, code: int, detail: str) -> None: ...

    detail: str


class Mangled(Exception):
    __slots__ = ("__secret",)

    def __init__(self) -> None:
        super().__init__("mangled")
        self.__secret = None

    def secret(self) -> Any:
        return self.__secret


class Diamond(ValueError, OSError):
    """`Diamond.__new__(Diamond)` is a TypeError: the first base does not lay out the object."""


class Weather(Exception):
    """Pickled as `copyreg` says."""

    def __init__(self, *, sky: str) -> None:
        super().__init__("weather")
        self.sky = sky


def _weather(sky: str) -> Weather:
    return Weather(sky=sky)


copyreg.pickle(Weather, lambda weather: (_weather, (weather.sky,)))


class BrokenReduce(Exception):
    """An exception whose own way of being pickled does not work."""

    def __reduce__(self) -> Any:
        return BrokenReduce, (1, 2, 3)

    def __init__(self, only: int) -> None:
        super().__init__(only)


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    made: Codec = request.param(namespace)
    return made


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


async def test_constructors_of_their_own_do_not_run(codec: Codec) -> None:
    rebuilt = await through(raised(OwnNew(1, "full")), codec)
    assert isinstance(rebuilt, OwnNew)
    assert (rebuilt.args, rebuilt.detail) == ((1,), "full")
    frozen = await through(raised(Frozen(3)), codec)
    assert isinstance(frozen, Frozen)
    assert frozen.limit == 3
    assert type(await through(raised(Diamond("x")), codec)) is Diamond
    mangled = await through(raised(Mangled()), codec)
    assert isinstance(mangled, Mangled)
    assert mangled.secret() is None


async def test_the_object_without_the_attribute_stays_where_it_is(codec: Codec) -> None:
    rebuilt = await through(AttributeError("a", name="q", obj=threading.Lock()), codec)
    assert isinstance(rebuilt, AttributeError)
    assert (rebuilt.name, rebuilt.obj) == ("q", None)


@pytest.mark.parametrize("pickling", [PickleCodec, CloudpickleCodec])
async def test_other_ways_of_being_pickled(namespace: str, pickling: type[Codec]) -> None:
    codec = pickling(namespace)
    rebuilt = await through(raised(Weather(sky="grey")), codec)
    assert isinstance(rebuilt, Weather)
    assert rebuilt.sky == "grey"
    broken = await through(raised(BrokenReduce(1)), codec)
    assert isinstance(broken, BrokenReduce)
    assert broken.args == (1,)


async def test_a_class_that_says_how_it_is_pickled(namespace: str) -> None:
    rebuilt = await through(raised(Keeper(limit=3)), CloudpickleCodec(namespace))
    assert isinstance(rebuilt, Keeper)
    assert rebuilt.limit == 3


async def test_a_local_class_is_the_same_class_in_one_process(namespace: str) -> None:
    class Local(Exception):
        pass

    assert type(await through(Local("x"), CloudpickleCodec(namespace))) is Local
    assert isinstance(await through(Local("x"), PickleCodec(namespace)), RemoteError)


async def test_what_cannot_be_encoded_is_left_behind(codec: Codec) -> None:
    rebuilt = await through(raised(ValueError("x", (n for n in ()))), codec)
    assert type(rebuilt) is ValueError
    assert rebuilt.args == ("x", "<builtins.generator, left behind>")
    assert rebuilt.__notes__[0].startswith("atasks: left behind at the worker: args[1] (")
    assert isinstance(rebuilt.__cause__, RemoteTraceback)
    assert "in raised" in rebuilt.__cause__.text


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


async def test_a_class_of_a_notebook_travels_by_value(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoArguments, "__module__", "__main__")
    error = raised(TwoArguments(1, "x"))
    rebuilt = await through(error, CloudpickleCodec(namespace))
    assert type(rebuilt) is TwoArguments
    assert isinstance(await through(error, MsgpackCodec(namespace)), RemoteError)


async def test_what_cannot_be_decoded_costs_the_others_nothing(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = CloudpickleCodec(namespace)
    error = TwoArguments(1, "x")
    error.__cause__ = KeyError(Frozen)
    content = await encode_failure(error, codec, hop=HOP)
    monkeypatch.delattr(f"{__name__}.Frozen")
    rebuilt = await decode_failure(content, codec)
    assert type(rebuilt) is TwoArguments
    assert isinstance(rebuilt.__cause__, RemoteError)
    assert rebuilt.__cause__.type_name == "builtins.KeyError"
    assert isinstance(rebuilt.__cause__.__cause__, RemoteTraceback)


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


async def test_a_group_of_another_constructor(codec: Codec) -> None:
    rebuilt = await through(raised(CodedGroup([TwoArguments(1, "x")], 5)), codec)
    assert isinstance(rebuilt, CodedGroup)
    assert (rebuilt.message, rebuilt.code) == ("code 5", 5)
    assert [type(item) for item in rebuilt.exceptions] == [TwoArguments]


async def test_leaves_have_the_traceback_that_concerns_them(codec: Codec) -> None:
    async def first() -> None:
        raise ValueError("one")

    async def second() -> None:
        raise KeyError("two")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(first())
            group.create_task(second())
    rebuilt = await through(caught.value, codec)
    assert isinstance(rebuilt, ExceptionGroup)
    assert rebuilt.__cause__ is None
    assert rebuilt.__notes__ == [HOP]
    one, two = (str(leaf.__cause__) for leaf in rebuilt.exceptions)
    for text, own, other in ((one, "in first", "in second"), (two, "in second", "in first")):
        assert own in text
        assert other not in text
        assert "async with asyncio.TaskGroup()" in text


async def test_the_members_that_are_too_many_are_counted(codec: Codec) -> None:
    rebuilt = await through(raised(MyGroup("wide", [ValueError(number) for number in range(500)])), codec)
    assert isinstance(rebuilt, MyGroup)
    *sent, last = rebuilt.exceptions
    assert [str(item) for item in sent] == [str(number) for number in range(99)]
    assert isinstance(last, RemoteError)
    assert last.message == "401 more exceptions of this group did not travel with the others"


async def test_one_exception_in_two_places_stays_one(codec: Codec) -> None:
    shared = KeyError("shared")
    one, two = ValueError(1), ValueError(2)
    one.__cause__ = two.__context__ = shared
    rebuilt = await through(ExceptionGroup("m", [one, two, shared]), codec)
    assert isinstance(rebuilt, ExceptionGroup)
    assert rebuilt.exceptions[0].__cause__ is rebuilt.exceptions[1].__context__ is rebuilt.exceptions[2]
    assert isinstance(rebuilt.exceptions[2].__cause__, RemoteTraceback)


async def test_tracebacks_begin_in_the_users_code(namespace: str) -> None:
    @atask(namespace=namespace)
    async def inner() -> None:
        raise ValueError("x")

    @atask(namespace=namespace)
    async def outer() -> None:
        await inner()

    async with connect("loopback:", namespace=namespace):
        with pytest.raises(ValueError, match="x") as caught:
            await outer()
    text = str(caught.value.__cause__)
    headers = re.findall(r"Traceback .*\n  File \"(.*)\", line \d+, in (\w+)", text)
    assert [(file == __file__, function) for file, function in headers] == [(True, "inner"), (True, "outer")]
    assert len(caught.value.__notes__) == 2
    assert type(caught.value.__cause__) is RemoteTraceback
    assert ".inner'" in caught.value.__notes__[0]
    assert ".outer'" in caught.value.__notes__[1]


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

    def fail() -> ExceptionGroup[Exception]:
        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        try:
            raise ExceptionGroup("m", [ValueError("x"), TwoArguments(1, "x")])
        except ExceptionGroup as error:
            return error

    alive: list[weakref.ref[Heavy]] = []
    error = fail()
    gc.collect()
    gc.disable()  # there is to be no circle that only the collector could undo
    try:
        rebuilt = await through(error, codec)
        assert not hasattr(error, "__notes__")
        assert (error.__cause__, error.exceptions[0].__cause__) == (None, None)
        assert rebuilt.__traceback__ is None
        assert alive[0]() is not None
        del error
        assert alive[0]() is None
    finally:
        gc.enable()


async def test_how_it_prints(namespace: str) -> None:
    try:
        try:
            int("")
        except ValueError as error:
            raise TwoArguments(7, "full") from error
    except TwoArguments as error:
        rebuilt = await through(error, CloudpickleCodec(namespace))
    text = "".join(traceback.format_exception(rebuilt))
    text = re.sub(r"\n +[~^]+\n", "\n", text.replace(__file__, "test.py").replace(__name__, "test"))
    assert re.sub(r"line \d+", "line N", text) == PRINTED


PRINTED = f"""\
atasks.errors.RemoteTraceback:\x20
Traceback (most recent call last):
  File "test.py", line N, in test_how_it_prints
    int("")
ValueError: invalid literal for int() with base 10: ''

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "test.py", line N, in test_how_it_prints
    raise TwoArguments(7, "full") from error
test.TwoArguments: 7: full

The above exception was the direct cause of the following exception:

ValueError: invalid literal for int() with base 10: ''

The above exception was the direct cause of the following exception:

test.TwoArguments: 7: full
{HOP}
"""


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"x" * 20_000_000,
        lambda: "x" * 20_000_000,
        lambda: list(range(5_000_000)),
        lambda: [{"number": number, "text": "row"} for number in range(200_000)],
        lambda: dict.fromkeys(range(1000000), "value"),
    ],
    ids=["bytes", "text", "numbers", "rows", "map"],
)
@pytest.mark.parametrize("where", ["args", "attributes", "cause"])
async def test_large_parts_are_left_behind_unencoded(make: Callable[[], Any], where: str, namespace: str) -> None:
    large = make()

    class Counting(CloudpickleCodec):
        encoded = 0

        async def encode(self, obj: Any) -> bytes:
            content = await super().encode(obj)
            self.encoded += len(content)
            return content

    error: Exception = LookupError(large if where == "args" else "no such order", 7)
    if where == "attributes":
        error.rows = large  # type: ignore[attr-defined]
    elif where == "cause":
        error.__cause__ = ValueError(large)
    codec = Counting(namespace)
    content = await encode_failure(error, codec, hop="hop", limit=1_000_000)
    assert len(content) < 100_000
    assert codec.encoded < 100_000
    copy = await decode_failure(content, codec)
    assert type(copy) is LookupError
    assert copy.args[1] == 7
    assert where == "cause" or "left behind at the worker" in "".join(copy.__notes__)


async def test_a_log_has_each_note_once() -> None:
    error = raised(ValueError("wrong"))
    for note in ("in stage 'resize', at item (3,)", "two\nlines"):
        error.add_note(note)
    group = raised(ExceptionGroup("several", [raised(KeyError("inside"))]))
    group.add_note("around\nall of it")
    for exc in (error, group):
        text = failure_text(await encode_failure(exc, MsgpackCodec("notes"), hop=HOP))
        for line in "\n".join([*exc.__notes__, HOP]).splitlines():
            assert text.count(line) == 1, text
