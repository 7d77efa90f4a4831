"""Failures that somebody crafted: MessagePack runs no code and reads no memory for them."""

from __future__ import annotations

import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import zstandard

from atasks import Codec, MsgpackCodec, RemoteError, ZstdCodec
from atasks.failures.failures import Failure, Node, decode_failure, encode_failure
from atasks.failures.values import Kind
from tests.unit.failures.exceptions import HOP, Json, raised, through


@pytest.fixture(params=[MsgpackCodec, Json])
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    made: Codec = request.param(namespace)
    return made


class Known(Exception):
    label = "class"

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.detail}"  # type: ignore[attr-defined]


class Other(Exception):
    pass


class Repr(Exception):
    __str__ = object.__str__

    def __repr__(self) -> str:
        return f"{self.expected} bytes"  # type: ignore[attr-defined]


class OnlyRepr(Exception):
    def __repr__(self) -> str:
        return f"<{self.expected} bytes>"  # type: ignore[attr-defined]


class Outer:
    class Inner(Exception):
        pass


class Ends(BaseException):
    pass


class EndsInGroups(BaseExceptionGroup[BaseException]):
    pass


async def crafted(
    codec: Codec, module: str, qualname: str, args: Any = (), attributes: Any = None, **fields: Any
) -> BaseException:
    """Rebuild a node with these values as a caller does; whatever that is, it can be shown."""
    values = await codec.encode([list(args), {} if attributes is None else attributes])
    node = Node(Kind.STATE, module, qualname, "message", values, **fields)
    rebuilt = await decode_failure(msgspec.msgpack.encode(Failure([node])), codec)
    assert isinstance(str(rebuilt), str)
    traceback.format_exception(rebuilt)
    return rebuilt


async def test_nothing_is_imported(codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deploy.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for qualname in ("NameError", "NoSuchError"):  # whoever shows an error, or finds no class, imports something
        await crafted(codec, "builtins", qualname)
    for module in ("deploy", "this", "unittest.__main__", "antigravity", "json.tool"):
        before = set(sys.modules)
        assert isinstance(await crafted(codec, module, "Error"), RemoteError)
        assert set(sys.modules) == before


async def test_nothing_is_imported_to_show_an_error(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 imports the module that an ImportError names, to say which of its names was meant."""
    (tmp_path / "rollout.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    attributes = {"name": "rollout", "name_from": "strat", "msg": "cannot import name 'strat'"}
    for qualname in ("ImportError", "ModuleNotFoundError"):
        await crafted(codec, "builtins", qualname, ["m"], attributes)
        assert "rollout" not in sys.modules


async def test_modules_and_classes_are_looked_into_and_not_asked(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return ValueError

    class Meta(type):
        def __getattr__(cls, name: str) -> Any:
            asked.append(name)
            return ValueError

    lazy = ModuleType("lazy_module")
    lazy.__getattr__ = lambda name: asked.append(name)  # type: ignore[method-assign]
    lazy.Holder = Meta("Holder", (), {})  # type: ignore[attr-defined]
    lazy.sys = sys  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    monkeypatch.setitem(sys.modules, "lazy_class", Lazy("lazy_class"))
    for module, qualname in (
        ("lazy_module", "Error"),
        ("lazy_module", "Holder.Error"),
        ("lazy_class", "Error"),
        ("lazy_module", "sys.exit"),
        (__name__, "pytest.fail.Exception"),
    ):
        assert isinstance(await crafted(codec, module, qualname), RemoteError)
    assert asked == []
    assert type(await crafted(codec, __name__, "Outer.Inner", ["x"])) is Outer.Inner


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("builtins", "SystemExit"),
        ("builtins", "KeyboardInterrupt"),
        ("builtins", "GeneratorExit"),
        ("asyncio.exceptions", "CancelledError"),
        (__name__, "Ends"),
        (__name__, "EndsInGroups"),
        ("builtins", "BaseException"),
    ],
)
async def test_only_subclasses_of_exception(codec: Codec, module: str, qualname: str) -> None:
    assert isinstance(await crafted(codec, module, qualname, ["m"]), RemoteError)


UNICODE = {"encoding": "utf-8", "object": b"xyz", "start": 0, "end": 1, "reason": "bad"}
SYNTAX = {
    "msg": "m",
    "filename": "f.py",
    "lineno": 1,
    "offset": 1,
    "text": "x = (",
    "end_lineno": 1,
    "end_offset": 2,
}
FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "start before the memory": ("UnicodeDecodeError", {**UNICODE, "start": -(2**40), "end": -(2**40) + 1}),
    "start just before": ("UnicodeDecodeError", {**UNICODE, "start": -1, "end": 0}),
    "end far behind": ("UnicodeDecodeError", {**UNICODE, "start": 2**62, "end": 2**62 + 1}),
    "no bytes": ("UnicodeDecodeError", {**UNICODE, "object": 7}),
    "text for bytes": ("UnicodeDecodeError", {**UNICODE, "object": "xyz"}),
    "a list of positions": ("UnicodeDecodeError", {**UNICODE, "start": [0]}),
    "encode": ("UnicodeEncodeError", {**UNICODE, "object": "xyz", "start": -5, "end": -4}),
    "encode bytes": ("UnicodeEncodeError", UNICODE),
    "translate": ("UnicodeTranslateError", {"object": "xyz", "start": -(2**33), "end": 5, "reason": "bad"}),
    "a reason that is none": ("UnicodeDecodeError", {**UNICODE, "reason": {"a": 1}}),
    "line": ("SyntaxError", {**SYNTAX, "lineno": "one"}),
    "offset": ("SyntaxError", {**SYNTAX, "offset": [1]}),
    "huge offset": ("SyntaxError", {**SYNTAX, "offset": 2**60, "end_offset": 2**61}),
    "line of carets": ("SyntaxError", {**SYNTAX, "end_offset": 2**31 - 1}),
    "text": ("SyntaxError", {**SYNTAX, "text": 5}),
    "import": ("ImportError", {"msg": [1], "name": {}, "path": 5}),
    "os": ("OSError", {"errno": [1], "strerror": {}}),
    "written": ("BlockingIOError", {"characters_written": "many"}),
    "name": ("NameError", {"name": ["x"]}),
}


@pytest.mark.parametrize("case", FIELDS)
async def test_fields_of_python_s_own_classes_are_checked(namespace: str, case: str) -> None:
    qualname, attributes = FIELDS[case]
    assert isinstance(await crafted(MsgpackCodec(namespace), "builtins", qualname, [], attributes), RemoteError)


async def test_attributes_are_a_dict_by_name(namespace: str) -> None:
    codec = MsgpackCodec(namespace)
    assert isinstance(await crafted(codec, "builtins", "ValueError", [], [1, 2]), RemoteError)
    assert isinstance(await crafted(codec, "builtins", "ValueError", [], {1: 2}), RemoteError)
    rebuilt = await crafted(
        codec, __name__, "Other", [], {"__class__": "x", "__notes__": 5, "__dict__": {}, "a": 1}
    )
    assert type(rebuilt) is Other
    assert rebuilt.a == 1  # type: ignore[attr-defined]


HONEST: dict[str, Callable[[], Exception]] = {
    "decode": lambda: UnicodeDecodeError("utf-8", b"\xff\xfe", 0, 1, "invalid start byte"),
    "encode": lambda: UnicodeEncodeError("ascii", "\u00e9", 0, 1, "ordinal not in range"),
    "translate": lambda: UnicodeTranslateError("xyz", 0, 1, "bad"),
    "syntax": lambda: SyntaxError("m", ("f.py", 1, 2, "x = (", 1, 3)),
    "import": lambda: ModuleNotFoundError("no x", name="x", path="p"),
    "file": lambda: FileNotFoundError(2, "no", "a.txt", None, "b.txt"),
    "negative number": lambda: OSError(-2, "name or service not known"),
    "blocking": lambda: BlockingIOError(11, "again", 5),
    "name": lambda: NameError("n", name="n"),
    "attribute": lambda: AttributeError("a", name="a", obj=object()),
}


@pytest.mark.parametrize("kind", HONEST)
async def test_what_python_raises_arrives(namespace: str, kind: str) -> None:
    error = HONEST[kind]()
    rebuilt = await through(raised(error), MsgpackCodec(namespace))
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    assert rebuilt.args[:1] == error.args[:1]


async def test_an_allow_list(namespace: str) -> None:
    codec = MsgpackCodec(namespace, exceptions=[Other])
    assert type(await through(raised(Other("x")), codec)) is Other
    assert type(await through(raised(ValueError("x")), codec)) is ValueError
    known = Known("x")
    known.detail = "d"  # type: ignore[attr-defined]
    rebuilt = await through(raised(known), codec)
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.message == "x: d"

    class Local(Exception):
        pass

    codec = MsgpackCodec(namespace, exceptions=[Local])
    assert type(await through(raised(Local("x")), codec)) is Local
    assert isinstance(await through(raised(Other("x")), codec), RemoteError)


async def test_a_text_that_fails_here(codec: Codec) -> None:
    known = Known("x")
    known.detail = "d"  # type: ignore[attr-defined]
    assert str(await through(raised(known), codec)).startswith("x: d")
    rebuilt = await crafted(codec, __name__, "Known", ["x"])
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.message == "message"
    never = await encode_failure(raised(Known()), codec, hop=HOP)  # it failed at the worker too
    assert isinstance(await decode_failure(never, codec), RemoteError)


async def test_a_text_that_is_the_repr_and_fails_here(codec: Codec) -> None:
    assert isinstance(await crafted(codec, __name__, "Repr", ["x"]), RemoteError)
    assert str(await crafted(codec, __name__, "Repr", ["x"], {"expected": 5})) == "5 bytes"


async def test_a_repr_that_fails_here(codec: Codec) -> None:
    """Such an error has a text, but no log could show the task that ended in it."""
    assert isinstance(await crafted(codec, __name__, "OnlyRepr", ["x"]), RemoteError)
    rebuilt = await crafted(codec, __name__, "OnlyRepr", ["x"], {"expected": 5})
    assert (str(rebuilt), repr(rebuilt)) == ("x", "<5 bytes>")
    assert isinstance(await through(raised(OnlyRepr("x")), codec), RemoteError)


def _each_twice(number: int) -> dict[str, Any]:
    return {"held": [([0], number), ([1], number)]}


def _in_a_list(number: int) -> dict[str, Any]:
    return {"held": [([0, place], number) for place in range(3)]}


def _as_attributes(number: int) -> dict[str, Any]:
    return {"held": [(["a"], number), (["b"], number), ([0], number), ([1], number)]}


def _members(number: int) -> dict[str, Any]:
    return {"qualname": "ExceptionGroup", "members": [number] * 40}


@pytest.mark.parametrize("refers", [_each_twice, _in_a_list, _as_attributes, _members])
@pytest.mark.parametrize("depth", [6, 60, 1000])
async def test_exceptions_that_refer_to_others_again_and_again(
    codec: Codec, refers: Callable[[int], dict[str, Any]], depth: int
) -> None:
    """Each is shown wherever another one refers to it: the text would double with each of them."""
    nodes = [Node(Kind.STATE, "builtins", "ValueError", "message", await codec.encode([["x" * 100], {}]))]
    for number in range(depth):
        fields = {"qualname": "ValueError", **refers(number)}
        args = ["m"] if "members" in fields else [[None] * 3, None]
        values = await codec.encode([args, {}])
        nodes.append(Node(Kind.STATE, "builtins", message="message", values=values, **fields))
    started = time.thread_time()
    rebuilt = await decode_failure(msgspec.msgpack.encode(Failure(nodes)), codec)
    assert len(str(rebuilt)) < 20_000_000
    assert sum(map(len, traceback.format_exception(rebuilt))) < 60_000_000
    await encode_failure(rebuilt, codec, hop=HOP)
    assert time.thread_time() - started < 5


async def test_an_exception_that_many_share_arrives(codec: Codec) -> None:
    shared = OSError(5, "the one connection was lost", "x" * 3000)
    raised(shared)
    rebuilt = await through(raised(ExceptionGroup("all", [shared] * 1000)), codec)
    assert isinstance(rebuilt, ExceptionGroup)
    assert len(rebuilt.exceptions) == 1000
    assert {type(error) for error in rebuilt.exceptions} == {OSError}


async def test_many_exceptions_in_a_long_list(codec: Codec) -> None:
    """The list is copied once, and not for each of them."""
    nodes = [Node(Kind.STATE, "builtins", "ValueError", "message", await codec.encode([[], {}]))]
    for first in ([], [0]):
        args: list[Any] = [None] * 1_000_000
        values = await codec.encode([[args] if first else args, {}])
        held: Any = [([*first, place], 0) for place in range(1024)]
        nodes[1:] = [Node(Kind.STATE, "builtins", "KeyError", "message", values, held=held)]
        body = msgspec.msgpack.encode(Failure(nodes))
        started = time.thread_time()
        rebuilt = await decode_failure(body, codec)
        assert time.thread_time() - started < 1
        places = rebuilt.args[0] if first else rebuilt.args
        assert sum(type(each) is ValueError for each in places) == 1024


async def test_no_object_and_no_class_travels(codec: Codec) -> None:
    values = await codec.encode([["m"], {}, "builtins.ValueError"])
    for kind in (Kind.OBJECT, Kind.STATE):
        node = Node(kind, "no.such", "Error", "message", values)
        assert isinstance(await decode_failure(msgspec.msgpack.encode(Failure([node])), codec), RemoteError)


async def test_held_exceptions_lead_to_earlier_nodes_only(codec: Codec) -> None:
    for held in ([([0], 0)], [([0], 900)], [(["x"], 0)], [([5], 0)], [([0, 1, 2], 0)], [(["__dict__"], 0)]):
        assert isinstance(await crafted(codec, "builtins", "ValueError", [None], held=held), Exception)


async def test_an_exception_whose_text_does_not_work_here_is_none_whatever_its_message_says(codec: Codec) -> None:
    """Also if the message says that it did not work at the worker either."""
    values = await codec.encode([["x"], {}])
    for message in ("message", "<str() of this Known failed>"):
        node = Node(Kind.STATE, __name__, "Known", message, values)
        rebuilt = await decode_failure(msgspec.msgpack.encode(Failure([node])), codec)
        assert isinstance(rebuilt, RemoteError)
        assert rebuilt.message == message


class Shows(Exception):
    def __str__(self) -> str:
        return f"{self.shown!r} was meant"  # type: ignore[attr-defined]


async def test_many_exceptions_that_show_one_large_one_take_no_time(codec: Codec) -> None:
    """Each of them is asked for its text: in all that is far more than what has arrived."""
    values = await codec.encode([["\0" * 900_000], {}])
    nodes = [Node(Kind.STATE, "builtins", "ValueError", "message", values)]
    values = await codec.encode([[], {"shown": None}])
    nodes += [
        Node(Kind.STATE, __name__, "Shows", "message", values, held=[(["shown"], number)], context=number)
        for number in [0] * 500
    ]
    started = time.thread_time()
    rebuilt = await decode_failure(msgspec.msgpack.encode(Failure(nodes)), codec)
    assert time.thread_time() - started < 1
    assert isinstance(rebuilt, RemoteError)
    few = await decode_failure(msgspec.msgpack.encode(Failure(nodes[:4])), codec)
    assert type(few) is Shows


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\xa1x"])
async def test_many_values_of_one_failure_share_their_memory(namespace: str, item: bytes) -> None:
    """Each is a little, and all of them are there at a time: a reply of 60 KB would take 70 GB."""
    codec = ZstdCodec(MsgpackCodec(namespace))
    count = 1_000_000 // len(item)
    values = zstandard.compress(b"\x92\x91\xdd" + count.to_bytes(4) + item * count + b"\x80", 19)
    nodes = [Node(Kind.STATE, "builtins", "ValueError", "message", values)]
    nodes += [Node(Kind.STATE, "builtins", "ValueError", "message", values, cause=number) for number in range(50)]
    body = msgspec.msgpack.encode(Failure(nodes))
    assert len(body) < 10_000
    tracemalloc.start()
    try:
        rebuilt = await decode_failure(body, codec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20
    assert isinstance(rebuilt, RemoteError)
    assert type(await decode_failure(msgspec.msgpack.encode(Failure(nodes[:1])), codec)) is ValueError
