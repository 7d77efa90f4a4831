"""Lone surrogates, which no encoding takes, in what exceptions say, in results, and in what is told of errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import atasks
from atasks import EncodeError, MsgpackCodec, RemoteError, wire
from atasks.codecs.pickle import PickleCodec
from atasks.failures.failures import encode_failure, failure_text
from atasks.tasks import atask
from atasks.testing import soon
from tests.unit.failures.exceptions import HOP, raised
from tests.unit.serving import serve

TEXT = "file \udc80.txt"
ESCAPED = r"file \udc80.txt"


class Refused(Exception):
    pass


def noted() -> BaseException:
    error = ValueError("noted")
    error.add_note(TEXT)
    return error


def named() -> BaseException:
    error = ValueError("named")
    setattr(error, TEXT, 1)
    return error


def compiled() -> BaseException:
    try:
        exec(compile("raise ValueError('compiled')", TEXT, "exec"))
    except ValueError as error:
        return error.with_traceback(None)
    raise AssertionError


def strange() -> BaseException:
    kind = type("Strange", (Exception,), {"__qualname__": TEXT, "__module__": __name__})
    error: BaseException = kind("strange")
    return error


KINDS: dict[str, tuple[Callable[[], BaseException], type[BaseException]]] = {
    "message": (lambda: Refused(TEXT), Refused),
    "key": (lambda: KeyError(TEXT), KeyError),
    "file": (lambda: FileNotFoundError(2, "No such file", TEXT), FileNotFoundError),
    "encoding": (lambda: UnicodeEncodeError("utf-8", TEXT, 5, 6, "surrogates"), UnicodeEncodeError),
    "note": (noted, ValueError),
    "attribute": (named, ValueError),
    "file of code": (compiled, ValueError),
    "group": (lambda: ExceptionGroup(TEXT, [Refused(TEXT)]), ExceptionGroup),
    "class": (strange, Exception),
}


@pytest.mark.parametrize("codec", [atasks.CloudpickleCodec, PickleCodec, MsgpackCodec])
@pytest.mark.parametrize("kind", KINDS)
async def test_exceptions_arrive_in_their_class(kind: str, codec: Any, namespace: str) -> None:
    codec(namespace)
    make, cls = KINDS[kind]

    @atask(namespace=namespace)
    async def fails() -> None:
        raise make()

    async with serve(namespace):
        with pytest.raises(RemoteError if kind == "class" and codec is not atasks.CloudpickleCodec else cls):
            await soon(fails())


@pytest.mark.parametrize("executor", [None, "thread"])
async def test_results_over_message_pack_are_refused(executor: Any, namespace: str) -> None:
    MsgpackCodec(namespace)

    def answer() -> Any:
        return {"name": [TEXT]}

    @atask(namespace=namespace)
    async def items() -> AsyncIterator[str]:
        yield TEXT

    asked = atask(answer, namespace=namespace, executor=executor)
    async with serve(namespace):
        with pytest.raises(EncodeError, match=r"at \['name'\]\[0\] .*lone surrogates"):
            await soon(asked())
        with pytest.raises(EncodeError, match=r"item 0 .*lone surrogates"):
            await soon(anext(items()))


def test_what_a_worker_says_of_a_call_holds_escapes() -> None:
    assert wire.ending(wire.ended("1", wire.Status.FAILED, TEXT)).message == ESCAPED


def test_a_module_whose_import_fails_so_in_a_process(script: Callable[..., str]) -> None:
    text = """
        import atasks, logging

        if __name__ != "__main__":
            raise OSError("no file \\udc80.txt")

        logging.getLogger("atasks.call").setLevel(logging.ERROR)

        @atasks.atask(executor="process")
        def compute() -> None: ...

        with atasks.connect_sync("loopback:"):
            try:
                compute.sync()
            except atasks.CallError as error:
                print(error)
    """
    said = script(text)
    assert said == r"a process of the worker cannot serve script.compute (OSError: no file \udc80.txt)"


async def test_logs_hold_escapes() -> None:
    text = failure_text(await encode_failure(raised(Refused(TEXT)), MsgpackCodec("surrogates"), hop=HOP))
    assert ESCAPED in text
    assert text.isascii()
