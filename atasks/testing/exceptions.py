"""Exceptions: what an atask raises is what its caller catches."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

import pytest

from atasks import RemoteError, RemoteTraceback, WorkerLost, current_call
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon
from atasks.wire import Call, Reply

__all__ = ["ExceptionCases"]


class Refused(Exception):
    """One with arguments that `__init__` needs, does not pass on as they are, and derives an attribute from."""

    def __init__(self, code: int, reason: str, *, retry: bool = False) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.retry = retry


class Plain(Exception):
    """One with two arguments, as they are."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)


class ExceptionCases(Cases):
    """Type, args, attributes, notes, causes and groups arrive, with the worker's traceback. Workers live on."""

    async def test_builtin_exceptions(self, site: Site) -> None:
        errors = [ValueError("text", 1), KeyError("key"), OSError(2, "No such file", "name"), TimeoutError()]

        @site.atask
        async def fail(number: int) -> NoReturn:
            raise errors[number]

        async with site.open():
            for number, error in enumerate(errors):
                caught = await _caught(fail(number))
                assert type(caught) is type(error)
                assert caught is not error
                assert (caught.args, str(caught)) == (error.args, str(error))

    async def test_exception_of_ones_own(self, site: Site) -> None:
        @site.atask
        async def fail() -> NoReturn:
            error = Refused(404, "not here", retry=True)
            error.extra = ["anything"]  # type: ignore[attr-defined]
            raise error

        async with site.open():
            caught = await _caught(fail())
            assert type(caught) is Refused
            assert caught.args == ("404: not here",)
            assert vars(caught).items() >= {"code": 404, "reason": "not here", "retry": True}.items()
            assert vars(caught)["extra"] == ["anything"]

    async def test_exception_with_two_arguments(self, site: Site) -> None:
        @site.atask
        async def fail() -> NoReturn:
            raise Plain(1, 2)

        async with site.open():
            caught = await _caught(fail())
            assert (type(caught), caught.args) == (Plain, (1, 2))

    async def test_exception_of_a_local_class(self, site: Site) -> None:
        class LocalError(Exception):
            pass

        @site.atask
        async def fail() -> NoReturn:
            raise LocalError(1, "two")

        async with site.open():
            caught = await _caught(fail())
            assert type(caught) is LocalError
            assert caught.args == (1, "two")

    async def test_library_exception_raised_by_an_atask(self, site: Site) -> None:
        @site.atask
        async def fail() -> NoReturn:
            raise WorkerLost("mine", attempts=7)

        async with site.open():
            caught = await _caught(fail())
            assert isinstance(caught, WorkerLost)
            assert (str(caught), caught.attempts) == ("mine", 7)

    async def test_traceback_of_the_worker(self, site: Site) -> None:
        def deep() -> NoReturn:
            raise ValueError("deep down")

        @site.atask
        async def fail() -> NoReturn:
            deep()

        async with site.open():
            caught = await _caught(fail())
            assert isinstance(caught.__cause__, RemoteTraceback)
            text = caught.__cause__.text
            assert "in fail" in text
            assert "in deep" in text
            assert 'raise ValueError("deep down")' in text
            assert text.rstrip().endswith("ValueError: deep down")
            assert text in "".join(traceback.format_exception(caught))

    async def test_cause_and_context(self, site: Site) -> None:
        @site.atask
        async def fail() -> None:
            try:
                try:
                    raise KeyError("first")
                except KeyError:
                    raise Refused(1, "second")  # noqa: B904  # the context is what is tested
            except Refused as error:
                raise ValueError("third") from error

        async with site.open():
            third = await _caught(fail())
            second = third.__cause__
            assert (type(third), type(second)) == (ValueError, Refused)
            assert third.__suppress_context__
            assert isinstance(second, Refused)
            assert second.code == 1
            first = second.__context__
            assert isinstance(first, KeyError)
            assert second.__cause__ is None
            assert not second.__suppress_context__
            assert isinstance(first.__cause__, RemoteTraceback)

    async def test_suppressed_context(self, site: Site) -> None:
        @site.atask
        async def fail() -> None:
            try:
                raise KeyError("hidden")
            except KeyError:
                raise ValueError("shown") from None

        async with site.open():
            caught = await _caught(fail())
            assert isinstance(caught.__cause__, RemoteTraceback)
            assert "hidden" not in "".join(traceback.format_exception(caught))

    async def test_notes(self, site: Site) -> None:
        @site.atask
        async def fail() -> NoReturn:
            error = ValueError()
            error.add_note("one")
            error.add_note("two")
            raise error

        async with site.open():
            caught = await _caught(fail())
            assert caught.__notes__[:2] == ["one", "two"]
            assert len(caught.__notes__) == 3

    async def test_one_note_for_each_hop(self, site: Site) -> None:
        ids = []

        @site.atask
        async def inner() -> NoReturn:
            ids.append(str(current_call().id))
            raise Refused(1, "inner")

        @site.atask
        async def outer() -> None:
            await inner()

        async with site.open():
            caught = await _caught(outer())
            first, second = caught.__notes__
            assert inner.name in first
            assert ids[-1] in first
            assert outer.name in second
            for note in (first, second):
                assert socket.gethostname() in note
                assert str(os.getpid()) in note
            assert type(caught) is Refused
            trace = "".join(traceback.format_exception(caught))
            assert "in inner" in trace
            assert "in outer" in trace

    async def test_group(self, site: Site) -> None:
        @site.atask
        async def fail() -> NoReturn:
            inner = ExceptionGroup("inner", [Refused(2, "two"), KeyError(3)])
            raise ExceptionGroup("outer", [ValueError(1), inner])

        async with site.open():
            caught = await _caught(fail())
            assert isinstance(caught, ExceptionGroup)
            assert caught.message == "outer"
            value, inner = caught.exceptions
            assert isinstance(inner, ExceptionGroup)
            refused, key = inner.exceptions
            assert [type(value), type(refused), type(key)] == [ValueError, Refused, KeyError]
            assert vars(refused)["reason"] == "two"
            assert [value.args, key.args] == [(1,), (3,)]
            for leaf in (value, refused, key):
                assert isinstance(leaf.__cause__, RemoteTraceback)

    async def test_group_of_a_task_group(self, site: Site) -> None:
        @site.atask
        async def child(n: int) -> NoReturn:
            raise Refused(n, "child")

        @site.atask
        async def parent() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(child(1))

        async with site.open():
            caught = await _caught(parent())
            assert isinstance(caught, ExceptionGroup)
            (leaf,) = caught.exceptions
            assert isinstance(leaf, Refused)
            assert leaf.code == 1

    async def test_class_that_the_caller_does_not_have(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        name = f"only_at_the_worker_{site.namespace.replace('-', '_')}"
        module = types.ModuleType(name)
        exec("class Strange(Exception):\n    pass", vars(module))
        monkeypatch.setitem(sys.modules, name, module)

        @site.atask
        async def fail() -> NoReturn:
            raise module.Strange("what it says")

        async with site.open():
            request = site.caller.request

            async def request_and_forget(call: Call, options: Any) -> Reply:
                reply = await request(call, options)
                monkeypatch.delitem(sys.modules, name)
                return reply

            monkeypatch.setattr(site.caller, "request", request_and_forget)
            monkeypatch.setattr(site.caller, "begin_request", lambda *_: None)
            caught = await _caught(fail())
            assert isinstance(caught, RemoteError)
            assert caught.type_name == f"{name}.Strange"
            assert caught.message == "what it says"
            assert "in fail" in caught.traceback
            assert str(caught) == f"{name}.Strange: what it says"

    async def test_exception_that_cannot_be_encoded(self, site: Site) -> None:
        @site.atask
        async def fail(wanted: bool) -> str:
            if wanted:
                raise Plain(threading.Lock(), 2)  # type: ignore[arg-type]
            return "none"

        async with site.open(concurrency=1):
            caught = await _caught(fail(True))
            assert type(caught) is Plain
            assert caught.args[1] == 2
            assert "args[0]" in caught.__notes__[0]
            assert isinstance(caught.__cause__, RemoteTraceback)
            assert "in fail" in caught.__cause__.text
            assert await soon(fail(False)) == "none"

    async def test_exceptions_that_end_programs(self, site: Site) -> None:
        kinds = [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException]

        @site.atask
        async def leave(number: int) -> NoReturn:
            raise kinds[number]("good bye")

        @site.atask
        async def stay() -> str:
            return "stayed"

        async with site.open(concurrency=1):
            for number, kind in enumerate(kinds):
                caught = await _caught(leave(number))
                assert isinstance(caught, RemoteError)
                assert caught.type_name == f"builtins.{kind.__name__}"
                assert caught.message == "good bye"
                assert "in leave" in caught.traceback
                assert await soon(stay()) == "stayed"

    async def test_exit(self, site: Site) -> None:
        @site.atask
        def leave() -> None:
            sys.exit(3)

        async with site.open():
            caught = await _caught(leave())
            assert isinstance(caught, RemoteError)
            assert (caught.type_name, caught.message) == ("builtins.SystemExit", "3")

    async def test_stop_iteration(self, site: Site) -> None:
        @site.atask
        async def coroutine() -> NoReturn:
            raise StopIteration(1)

        @site.atask
        def plain() -> NoReturn:
            raise StopIteration(1)

        async with site.open():
            for task in (coroutine, plain):
                caught = await _caught(task())
                assert type(caught) is RuntimeError
                assert str(caught) == "coroutine raised StopIteration"
                assert type(caught.__cause__) is StopIteration


async def _caught(awaitable: Any) -> BaseException:
    """Return the exception that the await raises, which must be one that programs survive."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each case says which one it is
        await soon(awaitable)
    return caught.value
