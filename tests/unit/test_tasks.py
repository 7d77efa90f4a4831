"""`@atask`: what it takes and refuses, the names that it gives, and what an ATask is to the rest of Python."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import inspect
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks.definitions import ATask
from atasks.tasks import atask

SPACE = "tests-tasks"


@atask(namespace=SPACE)
async def add(a: int, b: int = 10) -> int:
    """Adds."""
    return a + b


@atask(namespace=SPACE)
async def apply(task: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return await task(*args)


class Shelf:
    @atask(namespace=SPACE)
    @staticmethod
    async def above(n: int) -> int:
        return n + 1

    @staticmethod
    @atask(namespace=SPACE)
    async def below(n: int) -> int:
        return n + 2

    class Inner:
        @atask(namespace=SPACE)
        @staticmethod
        def plain(n: int) -> int:
            return n + 3


@pytest.fixture
async def connected() -> AsyncIterator[None]:
    async with atasks.connect("loopback:", namespace=SPACE):
        yield


# -- decoration


def test_bare_and_with_options(namespace: str) -> None:
    async def f() -> None: ...

    async def g() -> None: ...

    async def h() -> None: ...

    one = atask(namespace=namespace)(f)
    two = atask(g, namespace=namespace, name="other", timeout=5)
    three = atask(namespace=namespace, queue="gpu")(h)
    assert [type(task) for task in (one, two, three)] == [ATask] * 3
    assert (one.local, two.local, three.local) == (f, g, h)
    assert two.task_options.timeout == 5
    assert three.task_options.queue == "gpu"
    assert atasks.get_router(namespace).registry.names() == [one.name, "other", three.name]
    bare = atask(f)
    try:
        assert (bare.namespace, bare.name) == ("default", one.name)
    finally:
        atasks.get_router().registry.unregister(bare.name)


def test_names(namespace: str) -> None:
    class Local:
        @staticmethod
        async def method() -> None: ...

    def outer() -> Any:
        async def inner() -> None: ...

        return inner

    here = __name__
    assert add.name == f"{here}.add"
    assert Shelf.above.name == f"{here}.Shelf.above"
    assert Shelf.Inner.plain.name == f"{here}.Shelf.Inner.plain"
    assert atask(Local.method, namespace=namespace).name == f"{here}.test_names.Local.method"
    assert atask(outer(), namespace=namespace).name == f"{here}.test_names.outer.inner"
    assert atask(outer(), namespace=namespace, name="any name, ü").name == "any name, ü"
    assert atask(lambda: None, namespace=namespace).name == f"{here}.test_names.<lambda>"


@pytest.mark.parametrize("name", ["", 5, b"bytes"])
def test_a_name_is_text(name: Any, namespace: str) -> None:
    with pytest.raises(TypeError, match="non-empty string"):
        atask(name=name, namespace=namespace)(lambda: None)


def test_a_name_is_needed_where_there_is_none(namespace: str) -> None:
    partial = functools.partial(max, 3)
    with pytest.raises(TypeError, match="has no name: give one, atask"):
        atask(partial, namespace=namespace)
    assert atask(partial, namespace=namespace, name="at least three").name == "at least three"


def plain_generator() -> Iterator[int]:
    yield 1


class Thing:
    async def method(self) -> None: ...

    @classmethod
    async def make(cls) -> None: ...

    async def with_class(cls) -> None: ...


REFUSED: list[tuple[Any, str]] = [
    (Thing.method, "Thing.method is a method: an atask runs on a worker, which has no 'self'"),
    (Thing.with_class, "Thing.with_class is a method"),
    (Thing.__dict__["make"], "Thing.make is a class method: make it a @staticmethod"),
    (Thing, "Thing is a class: decorate a coroutine function"),
    (plain_generator, "plain_generator is a generator function, which cannot be awaited"),
    (add, "add is an atask already"),
    (5, "@atask decorates a coroutine function, not 5"),
    ("name", "@atask decorates a coroutine function, not 'name'"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED, ids=[message[:25] for _, message in REFUSED])
def test_what_cannot_be_an_atask(function: Any, message: str, namespace: str) -> None:
    for decorate in (atask(namespace=namespace), functools.partial(atask, namespace=namespace)):
        with pytest.raises(TypeError) as caught:
            decorate(function)
        assert message in str(caught.value)
    assert atasks.get_router(namespace).registry.names() == []


def test_methods_are_refused_where_they_are_defined(namespace: str) -> None:
    with pytest.raises(TypeError, match=r"C\.f is a method: .* @staticmethod and pass what it needs"):

        class C:
            @atask(namespace=namespace)
            async def f(self) -> None: ...


def test_methods_without_self_are_refused_when_their_class_is_made(namespace: str) -> None:
    """Such a function may still get a @staticmethod above it. Python 3.11 wraps what `__set_name__` raises."""
    with pytest.raises((TypeError, RuntimeError)) as caught:

        class C:
            @atask(namespace=namespace)
            async def f(this) -> None: ...

    error = caught.value if isinstance(caught.value, TypeError) else caught.value.__cause__
    assert isinstance(error, TypeError)
    assert "C.f is a method" in str(error)


def test_a_class_method_around_an_atask(namespace: str) -> None:
    with pytest.raises(TypeError, match=r"C\.f is a method"):

        class C:
            @classmethod
            @atask(namespace=namespace)
            async def f(cls) -> None: ...


def test_an_atask_may_be_an_attribute_of_a_class() -> None:
    class C:
        task = add

    assert C.task is add
    assert C().task is add


async def test_static_methods(connected: None) -> None:
    assert await Shelf.above(1) == 2
    assert await Shelf().above(1) == 2
    assert await Shelf.below(1) == 3
    assert await Shelf().below(1) == 3
    assert await Shelf.Inner.plain(1) == 4
    assert await Shelf.above.local(1) == 2
    assert isinstance(Shelf.below, ATask)


# -- two definitions of one name


def test_registering_twice(namespace: str) -> None:
    def one() -> None: ...

    def two() -> None: ...

    atask(one, namespace=namespace, name="same")
    with pytest.raises(atasks.RegisteringTwice) as caught:
        atask(two, namespace=namespace, name="same")
    message = str(caught.value)
    assert message.startswith(f"two atasks are named 'same' in namespace '{namespace}': ")
    lines = [function.__code__.co_firstlineno for function in (one, two)]
    assert all(f"{Path(__file__).name}:{line}" in message for line in lines)
    registered = atasks.get_router(namespace).registry.get("same")
    assert registered is not None
    assert registered.coro is one


def test_the_same_definition_replaces_itself(namespace: str) -> None:
    tasks = []
    for number in range(3):

        @atask(namespace=namespace)
        def f(number: int = number) -> int:
            return number

        tasks.append(f)
    assert atasks.get_router(namespace).registry.names() == [tasks[0].name]
    registered = atasks.get_router(namespace).registry.get(tasks[0].name)
    assert registered is not None
    assert registered.task is tasks[-1]


def test_a_definition_whose_options_are_wrong_takes_nothing_away(namespace: str) -> None:
    async def f() -> None: ...

    kept = atask(f, namespace=namespace)
    with pytest.raises(ValueError, match="timeout"):
        atask(f, namespace=namespace, timeout=-1)
    registered = atasks.get_router(namespace).registry.get(kept.name)
    assert registered is not None
    assert registered.task is kept


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: str) -> Iterator[Any]:
    """A module of its own that defines one atask, imported from a file."""
    name = f"module_{namespace.replace('-', '_')}"
    path = tmp_path / f"{name}.py"
    path.write_text(
        "import functools\n"
        "from atasks import atask\n\n"
        f"@atask(namespace={namespace!r})\n"
        "async def f():\n"
        "    return 1\n\n"
        f"partial = atask(functools.partial(pow, 2), name='power', namespace={namespace!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))
    importlib.invalidate_caches()


async def test_reload(module: Any, namespace: str) -> None:
    before = module.f
    edit(Path(module.__file__), "return 1", "return 1 + 1")
    importlib.reload(module)
    assert module.f is not before
    async with atasks.connect("loopback:", namespace=namespace):
        assert await module.f() == 2
        assert await before() == 2, "the worker runs the latest definition"
    assert pickle.loads(pickle.dumps(before)) is module.f


def test_import_again(module: Any, namespace: str) -> None:
    del sys.modules[module.__name__]
    again = importlib.import_module(module.__name__)
    assert again is not module
    assert sorted(atasks.get_router(namespace).registry.names()) == sorted([module.f.name, "power"])


async def test_local_runs_here(namespace: str) -> None:
    @atask(namespace=namespace)
    async def whoami() -> str | None:
        return atasks.current_call().id

    assert await whoami.local() is None
    assert await add.local(1, 2) == 3
    async with atasks.connect("loopback:", namespace=namespace):
        assert await whoami.local() is None
        assert await whoami() is not None


# -- as an object


def test_it_looks_like_its_function() -> None:
    assert (add.__name__, add.__qualname__, add.__module__, add.__doc__) == ("add", "add", __name__, "Adds.")
    assert add.__wrapped__ is add.local  # type: ignore[attr-defined]
    assert inspect.signature(add) == inspect.signature(add.local)
    assert str(inspect.signature(Shelf.below)) == "(n: 'int') -> 'int'"
    assert inspect.getdoc(add) == "Adds."
    assert inspect.unwrap(add) is add.local  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [add, add.options(timeout=1), Shelf.above, Shelf.below, Shelf.Inner.plain])
@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction.*:DeprecationWarning")
def test_it_is_a_coroutine_function(task: ATask[..., Any]) -> None:
    assert inspect.iscoroutinefunction(task)
    assert asyncio.iscoroutinefunction(task)
    assert inspect.iscoroutinefunction(functools.partial(task, 1))
    assert not inspect.isasyncgenfunction(task)
    assert not inspect.isgeneratorfunction(task)
    assert callable(task)


def test_attributes_of_the_function_are_kept_and_do_not_shadow(namespace: str) -> None:
    def f() -> None: ...

    marks: Any = f
    marks.own = 1
    marks.options = marks.local = marks.name = "shadow"
    task: Any = atask(f, namespace=namespace)
    assert task.own == 1
    assert task.local is f
    assert task.name.endswith(".f")
    assert isinstance(task.options(timeout=1), ATask)


def test_copies_are_itself() -> None:
    view = add.options(timeout=1)
    assert copy.copy(add) is copy.deepcopy(add) is add
    assert copy.deepcopy([view, view]) == [view, view]
    assert copy.copy(view) is view


def test_it_pickles_as_a_reference() -> None:
    content = pickle.dumps(add)
    assert b"add" in content
    assert len(content) < 200
    assert pickle.loads(content) is add
    assert pickle.loads(pickle.dumps(Shelf.above)) is Shelf.above
    assert pickle.loads(pickle.dumps(Shelf.below)) is Shelf.below
    assert pickle.loads(pickle.dumps({"task": [add]})) == {"task": [add]}


def test_a_reference_imports_the_module(module: Any, namespace: str) -> None:
    content = pickle.dumps(module.f.options(timeout=5))
    del sys.modules[module.__name__]
    registry = atasks.get_router(namespace).registry
    for name in registry.names():
        registry.unregister(name)
    restored = pickle.loads(content)
    assert restored.task_options.timeout == 5
    assert restored.local is sys.modules[module.__name__].f.local


def test_a_reference_to_what_is_not_defined_here(namespace: str) -> None:
    task = atask(test_a_name_is_text, namespace=namespace, name="fleeting")
    content = pickle.dumps(task)
    atasks.get_router(namespace).registry.unregister("fleeting")
    with pytest.raises(LookupError, match=r"no atask 'fleeting' in namespace .* here: import the module"):
        pickle.loads(content)


async def test_an_atask_is_an_argument_and_a_result(connected: None) -> None:
    assert await apply(add, 1, 2) == 3
    assert await apply(add.options(timeout=5), 1) == 11
    assert await apply(apply, add, 5) == 15

    @atask(namespace=SPACE)
    async def pick(*tasks: Any) -> Any:
        return tasks[-1]

    view = add.options(priority=1)
    assert await pick(add) is add
    assert repr(await pick(view)) == repr(view)


async def test_namespaces_are_separate(namespace: str, connected: None) -> None:
    @atask(namespace=namespace)
    async def total(*numbers: int) -> int:
        return sum(await asyncio.gather(*(add(n, 0) for n in numbers)))

    @atask(namespace=SPACE, name="up")
    async def up(n: int) -> int:
        return 1 + await total(n, n)

    with pytest.raises(atasks.NotConnected, match=rf"namespace='{namespace}'"):
        await total(1, 2)
    async with atasks.connect("loopback:", namespace=namespace):
        assert await total(1, 2) == 3
        assert await up(5) == 11
    registry = atasks.get_router(namespace).registry
    assert registry.names() == [total.name]
    atasks.get_router(SPACE).registry.unregister("up")


async def test_the_same_name_in_two_namespaces(namespace: str) -> None:
    one = atask(lambda: 1, name="same", namespace=namespace)
    two = atask(lambda: 2, name="same", namespace=SPACE)
    async with atasks.connect(namespace=namespace), atasks.connect(namespace=SPACE):
        assert [await one(), await two()] == [1, 2]
    atasks.get_router(SPACE).registry.unregister("same")


def test_what_never_will_be() -> None:
    assert not any(hasattr(add, name) for name in ("delay", "send", "s", "apply_async"))
