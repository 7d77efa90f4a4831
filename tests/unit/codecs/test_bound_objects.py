"""Objects that belong to one process are refused by every codec, and the error names where they are."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import io
import re
import threading
from collections import deque, namedtuple
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import CloudpickleCodec, Codec, EncodeError, MsgpackCodec, PickleCodec, ZstdCodec, atask
from atasks.current import carried

Pair = namedtuple("Pair", "left right")  # noqa: PYI024  # an untyped one on purpose


class OwnLock(asyncio.Lock):
    """A lock of the user's: its state names no class of asyncio."""


class Slots:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = OwnLock()


@dataclass
class Order:
    lock: Any = field(default_factory=asyncio.Lock)


async def coroutine() -> None: ...


BOUND: dict[str, Callable[[], Any]] = {
    "lock": asyncio.Lock,
    "own": OwnLock,
    "event": asyncio.Event,
    "condition": asyncio.Condition,
    "semaphore": asyncio.Semaphore,
    "bounded": lambda: asyncio.BoundedSemaphore(2),
    "barrier": lambda: asyncio.Barrier(2),
    "queue": asyncio.Queue,
    "priority": asyncio.PriorityQueue,
    "group": asyncio.TaskGroup,
    "timeout": lambda: asyncio.timeout(1),
    "future": lambda: asyncio.get_running_loop().create_future(),
    "task": lambda: asyncio.current_task(),
    "loop": lambda: asyncio.get_running_loop(),
    "reader": asyncio.StreamReader,
    "bound method": lambda: asyncio.Lock().acquire,
    "thread lock": threading.Lock,
    "thread event": threading.Event,
    "thread barrier": lambda: threading.Barrier(2),
    "local": threading.local,
    "variable": lambda: contextvars.ContextVar("nowhere"),
}


@pytest.fixture(params=["cloudpickle", "pickle", "msgpack", "zstd"])
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    if request.param == "zstd":
        return ZstdCodec(namespace=namespace)
    kinds: dict[str, type[Codec]] = {
        "cloudpickle": CloudpickleCodec,
        "pickle": PickleCodec,
        "msgpack": MsgpackCodec,
    }
    return kinds[request.param](namespace)


@pytest.fixture
async def take(codec: Codec, namespace: str) -> AsyncIterator[Any]:
    @atask(namespace=namespace, name="shop.take")
    async def take(first: Any, /, orders: Any = None, *rest: Any, key: Any = None, **more: Any) -> None: ...

    async with atasks.connect("loopback:", namespace=namespace):
        yield take


@pytest.mark.parametrize("kind", BOUND)
async def test_it_is_refused_and_its_argument_named(take: Any, codec: Codec, kind: str) -> None:
    make = BOUND[kind]
    with pytest.raises(
        EncodeError, match=rf"^argument first.* of shop\.take \(.*\) cannot be encoded by {re.escape(codec.name)}"
    ):
        await take(make())
    with pytest.raises(EncodeError, match=r"^argument key\['deep'\]\[1\].* of shop\.take "):
        await take(1, key={"deep": [1, make(), 3]})


PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda lock: [1, 2, 3, lock, 5], r"orders\[3\]"),
    "tuple": (lambda lock: (lock,), r"orders\[0\]"),
    "dict": (lambda lock: {"a": {"b": lock}}, r"orders\['a'\]\['b'\]"),
    "attribute": (lambda lock: [0, 1, 2, Order(lock)], r"orders\[3\]\.lock"),
    "named tuple": (lambda lock: Pair(1, lock), r"orders\.right"),
    "secret key": (lambda lock: {"bob@example.com": lock}, r"orders\[\.\.\.\]"),
}
PICKLED_PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    **PLACES,
    "slot": (lambda lock: Slots(), r"orders\.lock"),
    "deque": (lambda lock: deque([1, lock]), r"orders\[1\]"),
    "partial": (lambda lock: functools.partial(print, 1, file=lock), r"orders\.keywords\['file'\]"),
    "method": (lambda lock: Order(lock).__eq__, r"orders\.__self__\.lock"),
}


@pytest.mark.parametrize("place", PLACES)
async def test_the_error_says_where_it_is(take: Any, place: str) -> None:
    wrap, path = PLACES[place]
    with pytest.raises(EncodeError, match=rf"^argument {path} of shop\.take \(asyncio\.locks\.Lock\)"):
        await take(1, wrap(asyncio.Lock()))


@pytest.mark.parametrize("kind", [CloudpickleCodec, PickleCodec])
@pytest.mark.parametrize("place", PICKLED_PLACES)
async def test_the_error_says_where_it_is_in_what_only_pickles_take(
    namespace: str, kind: type[Codec], place: str
) -> None:
    kind(namespace)

    @atask(namespace=namespace, name="shop.take")
    async def take(orders: Any) -> None: ...

    wrap, path = PICKLED_PLACES[place]
    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(EncodeError, match=rf"^argument {path} of shop\.take .*Lock"):
            await take(wrap(asyncio.Lock()))
        with pytest.raises(EncodeError, match=rf"^argument {path} of shop\.take "):
            await take(orders=wrap(OwnLock()))


MODULE_LOCK = asyncio.Lock()


async def test_closures_defaults_and_globals_that_travel_by_value(namespace: str) -> None:
    CloudpickleCodec(namespace)

    @atask(namespace=namespace)
    async def take(work: Any) -> None: ...

    lock = asyncio.Lock()
    # As a notebook's: its globals travel by value too.
    scope: dict[str, Any] = {"lock": lock, "__name__": "__main__"}
    exec("def typed(): return lock", scope)
    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(EncodeError, match=r"^argument work\.<closure>\.lock of "):
            await take(lambda: lock)
        with pytest.raises(EncodeError, match=r"^argument work\.__defaults__\[0\] of "):
            await take(lambda held=lock: held)
        with pytest.raises(EncodeError, match=r"^argument work\.__kwdefaults__\['held'\] of "):
            await take(lambda *, held=lock: held)
        with pytest.raises(EncodeError, match=r"^argument work\.<globals>\.lock of "):
            await take(scope["typed"])


async def test_results_items_and_carried_variables(codec: Codec, namespace: str) -> None:
    @atask(namespace=namespace, name="shop.give")
    async def give() -> Any:
        return [1, Order()]

    @atask(namespace=namespace, name="shop.stream")
    async def stream() -> AsyncIterator[Any]:
        yield 1
        yield {"event": asyncio.Event()}

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(
            EncodeError, match=r"^the result of shop\.give at \[1\]\.lock \(asyncio\.locks\.Lock\)"
        ):
            await give()
        items = stream()
        assert await anext(items) == 1
        with pytest.raises(EncodeError, match=r"^item 1 of shop\.stream at \['event'\] \(asyncio\.locks\.Event\)"):
            await anext(items)


async def test_a_carried_variable_is_named(codec: Codec, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("tenant")
    monkeypatch.setitem(carried, "tenant", variable)

    @atask(namespace=namespace, name="shop.ask")
    async def ask() -> None: ...

    variable.set({"locks": [asyncio.Lock()]})
    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(
            EncodeError,
            match=r"^the context variable 'tenant', which travels with shop\.ask, at \['locks'\]\[0\] ",
        ):
            await ask()


async def test_the_culprit_among_many(take: Any) -> None:
    with pytest.raises(EncodeError, match=r"^argument orders\[70000\] of shop\.take "):
        await take(1, [*range(70_000), asyncio.Lock(), *range(30_000)])


async def test_open_files_are_refused_and_what_pickles_change_is_known(namespace: str, tmp_path: Path) -> None:
    codec = CloudpickleCodec(namespace)
    path = tmp_path / "text"
    path.write_text("content")
    with path.open() as file, pytest.raises(EncodeError, match="TextIOWrapper cannot travel: an open file stays"):
        await codec.encode({"file": file})
    with path.open("rb") as binary, pytest.raises(TypeError, match="BufferedReader"):
        await codec.encode([binary])
    assert await codec.decode(await codec.encode([memoryview(b"bytes")])) == [b"bytes"]
    text = await codec.decode(await codec.encode([io.StringIO("in memory")]))
    assert text[0].read() == "in memory"


async def test_what_only_looks_like_it_travels(namespace: str) -> None:
    codec = CloudpickleCodec(namespace)
    for value in (asyncio.QueueEmpty(), asyncio.CancelledError(), asyncio.Lock, asyncio.sleep):
        again = (await codec.decode(await codec.encode([value])))[0]
        assert type(again) is type(value)


class Counted:
    pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        Counted.pickled += 1
        return Counted, ()


async def test_an_argument_is_pickled_once(namespace: str) -> None:
    for kind in (CloudpickleCodec, PickleCodec):
        Counted.pickled = 0
        await kind(namespace).encode((([Counted()], 1), {}))
        assert Counted.pickled == 1
