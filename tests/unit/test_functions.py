"""Functions below decorators: what a call may look like, what kind of atask it is, and which definition it is."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import atasks
from atasks import CloudpickleCodec, Codec, MsgpackCodec, RegisteringTwice, atask
from atasks.definitions import ATask, StreamTask

if TYPE_CHECKING:
    from somewhere import Session  # type: ignore[import-not-found]


@dataclass
class Point:
    x: int


class Unknown:
    pass


def injecting(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function("injected", *args, **kwargs)

    return wrapper


def injecting_by_name(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, session="injected", **kwargs)

    return wrapper


def taking_away(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def plain(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.fixture(params=[CloudpickleCodec, MsgpackCodec])
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    made: Codec = request.param(namespace)
    return made


async def session_first(session: Session, point: Point, times: int = 1) -> tuple[Any, ...]:
    return session, type(point).__name__, times


async def unknown_first(unknown: Unknown, point: Point, times: int = 1) -> tuple[Any, ...]:
    return unknown, type(point).__name__, times


async def bound(self: Any, point: Point, times: int = 1) -> tuple[Any, ...]:
    return self, type(point).__name__, times


async def untyped_first(state: Any, point: Point) -> tuple[Any, ...]:
    return state, type(point).__name__, 1


async def by_name(point: Point, times: int = 1, *, session: Any) -> tuple[Any, ...]:
    return session, type(point).__name__, times


@pytest.mark.parametrize(
    "function",
    [
        injecting(session_first),
        injecting(unknown_first),
        injecting(bound),
        injecting(untyped_first),
        injecting_by_name(by_name),
        plain(injecting(bound)),
        taking_away(injecting(bound)),
        functools.partial(injecting(bound)),
    ],
)
async def test_decorators_that_add_arguments(codec: Codec, namespace: str, function: Any) -> None:
    task = atask(function, namespace=namespace, name="injected")
    async with atasks.connect("loopback:", namespace=namespace):
        session, point, times = await task(Point(1))
        assert (session, times) == ("injected", 1)
        if not isinstance(function, functools.partial) or codec.carries_types:
            assert point == "Point"


async def test_optional_arguments_behind_what_a_decorator_adds(codec: Codec, namespace: str) -> None:
    async with atasks.connect("loopback:", namespace=namespace):
        for name, function in {"a": bound, "b": session_first, "c": unknown_first}.items():
            task = atask(injecting(function), namespace=namespace, name=name)
            assert list(await task(Point(1), 2)) == ["injected", "Point", 2]
            assert list(await task(Point(1), times=2)) == ["injected", "Point", 2]


async def test_what_a_decorator_makes_of_plain_data(namespace: str) -> None:
    MsgpackCodec(namespace)

    def validating(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(Unknown(), *args[1:], **kwargs) if args else await function(**kwargs)

        return wrapper

    @atask(namespace=namespace)
    @validating
    async def show(model: Unknown, n: int = 1) -> int:
        return n

    async with atasks.connect("loopback:", namespace=namespace):
        assert await show({"x": 1}) == 1
        assert await show({"x": 1}, 5) == 5
        assert await show(model={"x": 1}, n=2) == 2
        with pytest.raises(atasks.DecodeError, match="argument 'n' of"):
            await show({"x": 1}, "five")


async def test_decorators_that_take_arguments_away(codec: Codec, namespace: str) -> None:
    @atask(namespace=namespace)
    @taking_away
    async def double(point: Point) -> int:
        return 2 * point.x

    async with atasks.connect("loopback:", namespace=namespace):
        assert await double(Point(2), verbose=True) == 4


async def test_what_does_not_fit_is_the_decorator_s_to_say(codec: Codec, namespace: str) -> None:
    @atask(namespace=namespace)
    @plain
    async def double(n: int) -> int:
        return 2 * n

    def narrow(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(m: int) -> Any:
            return await function(m)

        return wrapper

    @atask(namespace=namespace)
    @narrow
    async def twice(n: int) -> int:
        return 2 * n

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'") as caught:
            await double()
        assert isinstance(caught.value.__cause__, atasks.RemoteTraceback)
        assert await twice(m=2) == 4
        with pytest.raises(TypeError, match="unexpected keyword argument 'n'"):
            twice(n=2)


async def test_types_hold_below_a_decorator_that_hands_on(namespace: str) -> None:
    MsgpackCodec(namespace)

    @atask(namespace=namespace)
    @plain
    async def double(n: int, label: str = "") -> int:
        return 2 * n

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(atasks.DecodeError, match=r"argument 'n' of .*double: Expected `int`, got `str`"):
            await double("2")
        with pytest.raises(atasks.DecodeError, match=r"argument 'label' of .*double: Expected `str`, got `int`"):
            await double(2, label=2)


async def test_a_signature_that_a_decorator_declares(codec: Codec, namespace: str) -> None:
    wrapper = injecting(bound)
    wrapper.__signature__ = inspect.signature(bound).replace(
        parameters=list(inspect.signature(bound).parameters.values())[1:]
    )
    task = atask(wrapper, namespace=namespace)
    async with atasks.connect("loopback:", namespace=namespace):
        assert list(await task(Point(1), times=3)) == ["injected", "Point", 3]
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'point'"):
            task()


# -- streams below decorators


async def test_a_plain_decorator_of_an_async_generator_is_a_stream(codec: Codec, namespace: str) -> None:
    @atask(namespace=namespace)
    @plain
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @atask(namespace=namespace)
    @injecting
    async def one(self: Any) -> int:
        return 1

    assert isinstance(numbers, StreamTask)
    assert isinstance(one, ATask)
    async with atasks.connect("loopback:", namespace=namespace):
        assert [item async for item in numbers(3)] == [0, 1, 2]


def test_what_is_a_context_manager_is_refused_at_decoration(namespace: str) -> None:
    async def transaction() -> AsyncIterator[int]:
        yield 1

    def blocking() -> Iterator[int]:
        yield 1

    for manager in (
        contextlib.asynccontextmanager(transaction),
        contextlib.contextmanager(blocking),
        functools.partial(contextlib.asynccontextmanager(transaction)),
        plain(contextlib.asynccontextmanager(transaction)),
    ):
        with pytest.raises(TypeError, match="cannot be a context manager, nor a dependency with a yield"):
            atask(manager, namespace=namespace, name="manager")
    assert atasks.get_router(namespace).registry.names() == []


async def test_a_stream_that_becomes_a_context_manager_is_refused_at_its_first_use(namespace: str) -> None:
    ran: list[str] = []

    @atask(namespace=namespace)
    async def transaction() -> AsyncIterator[int]:
        yield 1
        ran.append("commit")

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(TypeError, match="cannot be a context manager"):
            async with contextlib.asynccontextmanager(transaction)():
                raise ValueError("the body")
        with pytest.raises(TypeError, match="cannot be a context manager"):
            async with contextlib.asynccontextmanager(transaction.options(timeout=5))():
                pass
        with pytest.raises(TypeError, match="cannot be a context manager"):
            contextlib.contextmanager(transaction.sync)()
        assert ran == []
        async with contextlib.aclosing(transaction()) as items:
            assert await anext(items) == 1
        stream = transaction()
        assert await anext(stream) == 1
        with pytest.raises(atasks.NotSupported, match=r"nothing can be sent into the stream .*transaction"):
            await stream.asend(None)
        with pytest.raises(atasks.NotSupported, match="nothing can be thrown into the stream"):
            await stream.athrow(ValueError("x"))
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


# -- one definition, or two


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def bare(function: Any) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("decorate", [wrapped, bare, lambda f: wrapped(wrapped(f)), functools.lru_cache])
def test_two_functions_below_one_decorator_are_two(namespace: str, decorate: Callable[[Any], Any]) -> None:
    async def one() -> None: ...

    async def two() -> None: ...

    first = decorate(one)
    atask(first, namespace=namespace, name="same")
    with pytest.raises(RegisteringTwice):
        atask(decorate(two), namespace=namespace, name="same")
    assert atasks.get_router(namespace).registry.get("same").coro is first  # type: ignore[union-attr]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: str) -> Iterator[ModuleType]:
    """A module that defines one atask in each of several ways."""
    name = f"defined_{namespace.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import functools\nfrom atasks import atask\n\n"
        "def wrapped(f):\n    @functools.wraps(f)\n"
        "    def wrapper(*a, **k):\n        return f(*a, **k)\n    return wrapper\n\n"
        f"@atask(namespace={namespace!r})\nasync def simple():\n    return 1\n\n"
        f"@atask(namespace={namespace!r})\n@wrapped\nasync def below():\n    return 1\n\n"
        f"@atask(namespace={namespace!r})\n@functools.lru_cache\ndef cached():\n    return 1\n\n"
        f"partial = atask(functools.partial(wrapped(pow), 2), name='power', namespace={namespace!r})\n"
        "class Callable:\n    def __call__(self):\n        return 1\n"
        f"called = atask(Callable(), name='called', namespace={namespace!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


async def test_reload_after_a_line_was_added_above(
    module: ModuleType, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(str(module.__file__))
    path.write_text("# one more line\n" + path.read_text().replace("return 1", "return 1 + 1"))
    importlib.invalidate_caches()
    with caplog.at_level(logging.INFO, "atasks"):
        importlib.reload(module)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert any(text.startswith(f"'{module.__name__}.simple' is defined again at {path}:") for text in said)
    async with atasks.connect("loopback:", namespace=namespace):
        assert await module.simple() == 2
        assert await module.below() == 2
        assert await module.cached() == 2
        assert await module.called() == 2
        assert await module.partial(3) == 8


def test_the_same_name_in_another_file(module: ModuleType, namespace: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(Path(str(module.__file__)).read_text())
    spec = importlib.util.spec_from_file_location(module.__name__, other)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(RegisteringTwice, match=rf"{other}:\d+"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def test_an_edited_cell_of_a_notebook(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")  # a notebook's has no file, and each of its cells has another file name
    monkeypatch.setitem(sys.modules, "__main__", main)
    vars(main).update(atask=atask, namespace=namespace)
    for number, name in enumerate(("/tmp/ipykernel_1/111.py", "/tmp/ipykernel_1/222.py", "<ipython-input-3-abc>")):
        source = f"{number * chr(10)}@atask(namespace=namespace)\nasync def cell():\n    return {number}\n"
        exec(compile(source, name, "exec"), vars(main))
    async with atasks.connect("loopback:", namespace=namespace):
        assert await vars(main)["cell"]() == 2
    assert inspect.iscoroutinefunction(vars(main)["cell"])
