"""Exceptions of which some part cannot travel keep their class, and say what stayed behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import tenacity

import atasks
from atasks import CloudpickleCodec, Codec, MsgpackCodec, PickleCodec, RemoteError, RemoteTraceback, atask
from atasks.failures.failures import decode_failure, encode_failure
from tests.unit.failures.exceptions import CODECS, HOP, raised, through

LIMIT = 64 * 1024


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, namespace: str) -> Codec:
    made: Codec = request.param(namespace)
    return made


class Locked(Exception):
    def __init__(self, message: str, lock: Any, code: int) -> None:
        super().__init__(message)
        self.lock = lock
        self.code = code


class Slotted(Exception):
    __slots__ = ("code", "lock")

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.code = 7


class Group(ExceptionGroup[Exception]):
    lock: Any = None


@pytest.mark.parametrize("make", [threading.Lock, asyncio.Lock, lambda: open(__file__), lambda: (n for n in ())])  # noqa: SIM115
async def test_an_attribute_that_cannot_travel(codec: Codec, make: Callable[[], Any]) -> None:
    lock = make()
    try:
        rebuilt = await through(raised(Locked("no", lock, 5)), codec)
    finally:
        getattr(lock, "close", lambda: None)()
    assert type(rebuilt) is Locked
    assert (rebuilt.args, rebuilt.code, hasattr(rebuilt, "lock")) == (("no",), 5, False)
    note, hop = rebuilt.__notes__
    assert note.startswith("atasks: left behind at the worker: lock (")
    assert hop == HOP
    assert isinstance(rebuilt.__cause__, RemoteTraceback)


async def test_slots_args_notes_causes_and_members(codec: Codec) -> None:
    lock = threading.Lock()
    slotted = await through(raised(Slotted(lock)), codec)
    assert type(slotted) is Slotted
    assert (slotted.code, hasattr(slotted, "lock")) == (7, False)

    error = ValueError("x", lock, 2)
    error.__notes__ = ["a note", lock]  # type: ignore[list-item]
    error.__cause__ = Locked("the cause", lock, 1)
    rebuilt = await through(raised(error), codec)
    assert type(rebuilt) is ValueError
    assert rebuilt.args == ("x", "<_thread.lock, left behind>", 2)
    assert rebuilt.__notes__[0] == "a note"
    assert type(rebuilt.__cause__) is Locked
    assert rebuilt.__cause__.args == ("the cause",)

    group = Group("all", [Locked("one", lock, 1), KeyError(lock), ValueError("fine")])
    group.lock = lock
    rebuilt = await through(raised(group), codec)
    assert type(rebuilt) is Group
    assert [type(member) for member in rebuilt.exceptions] == [Locked, KeyError, ValueError]
    assert rebuilt.exceptions[2].args == ("fine",)
    assert rebuilt.lock is None


class Speaking(Locked):
    """An exception whose text needs what cannot travel, as that of tenacity's `RetryError` does."""

    def __str__(self) -> str:
        return f"{self.code} {self.lock}"


async def test_an_exception_whose_text_needs_what_stays_behind(codec: Codec) -> None:
    rebuilt = await through(raised(Speaking("no", threading.Lock(), 5)), codec)
    assert type(rebuilt) is Speaking
    assert str(rebuilt) == "5 <_thread.lock, left behind>"
    assert rebuilt.__notes__[0].startswith("atasks: left behind at the worker: lock (")

    large = Speaking("no", b"x" * LIMIT, 5)
    content = await encode_failure(raised(large), codec, hop=HOP, limit=LIMIT)
    copy = await decode_failure(content, codec)
    assert type(copy) is Speaking
    assert str(copy) == "5 <builtins.bytes, left behind>"


@atask
@tenacity.retry(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(2))
async def give_up() -> None:
    raise ConnectionError("the bank does not answer")


async def test_a_retry_below_an_atask_that_gives_up() -> None:
    async with atasks.connect("loopback:"):
        with pytest.raises(tenacity.RetryError, match="left behind") as caught:
            await give_up()
    assert type(caught.value.__cause__) is ConnectionError
    assert str(caught.value.__cause__) == "the bank does not answer"


# -- exceptions within exceptions, and pickling that loses something


class Pool(Exception):
    """An exception like those of urllib3: its own pickling forgets what it was made of."""

    def __init__(self, pool: Any, message: str, reason: Exception | None = None) -> None:
        self.pool = pool
        self.reason = reason
        super().__init__(f"{pool}: {message}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Pool, (None, "")


class Forgetful(Exception):
    def __init__(self, code: int = 0) -> None:
        super().__init__("text")
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return Forgetful, ()


class Deliberate(Exception):
    """An exception whose own pickling leaves out what must not travel."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.secret = "s3cret"

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.secret = "none"


class Remaking(Exception):
    """An exception whose own pickling makes anew what cannot travel."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Remaking, self.args


async def test_a_reduce_that_loses_something(codec: Codec) -> None:
    reason = Pool("host:1", "refused")
    error = OSError(Pool("host:1", "Max retries exceeded", reason))
    error.others = [reason, (1, reason)]  # type: ignore[attr-defined]
    rebuilt = await through(raised(error), codec)
    assert type(rebuilt) is OSError
    inner = rebuilt.args[0]
    assert type(inner) is Pool
    assert str(rebuilt) == str(inner) == "host:1: Max retries exceeded"
    assert str(inner.reason) == "host:1: refused"
    assert rebuilt.others[0] is inner.reason  # type: ignore[attr-defined]
    forgetful = await through(raised(Forgetful(5)), codec)
    assert (type(forgetful), forgetful.code) == (Forgetful, 5)


@pytest.mark.parametrize("kind", [CloudpickleCodec, PickleCodec])
async def test_a_class_may_say_what_travels(namespace: str, kind: type[Codec]) -> None:
    codec = kind(namespace)
    deliberate = await through(raised(Deliberate("x")), codec)
    assert (type(deliberate), deliberate.args, deliberate.secret) == (Deliberate, ("x",), "none")
    remaking = await through(raised(Remaking("x")), codec)
    assert type(remaking) is Remaking
    assert not remaking.lock.locked()


async def test_circles_of_attributes_end(codec: Codec) -> None:
    error = Locked("x", None, 1)
    error.lock = error
    error.__dict__["list"] = [1, error, ValueError("inner")]
    rebuilt = await through(raised(error), codec)
    assert type(rebuilt) is Locked
    assert rebuilt.lock is None
    assert rebuilt.list[0:2] == [1, None]  # type: ignore[attr-defined]
    assert str(rebuilt.list[2]) == "inner"  # type: ignore[attr-defined]
    assert "lock (one exception too many, or a circle), list[1] (" in rebuilt.__notes__[0]


# -- large ones


class Telling(Exception):
    def __str__(self) -> str:
        return f"telling {self.args[0][:3]}"


LARGE: dict[str, Callable[[], BaseException]] = {
    "text": lambda: ValueError("x" * 300_000),
    "lines": lambda: ValueError("x\n" * 150_000),
    "wide": lambda: ValueError("\U0001f600" * 100_000),
    "bytes": lambda: ValueError(b"x" * 300_000),
    "list": lambda: ValueError(list(range(100_000)), "second"),
    "attribute": lambda: Locked("small", "x" * 300_000, 5),
    "own text": lambda: Telling("x" * 300_000),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"x" * 300_000, 1, 2, "bad"),
    "key": lambda: KeyError("x" * 300_000),
}


@pytest.mark.parametrize("kind", LARGE)
async def test_an_exception_over_the_limit_keeps_its_class(codec: Codec, kind: str) -> None:
    error = LARGE[kind]()
    content = await encode_failure(raised(error), codec, hop=HOP, limit=LIMIT)
    assert len(content) <= LIMIT
    rebuilt = await decode_failure(content, codec)
    if isinstance(rebuilt, RemoteError):
        assert isinstance(codec, MsgpackCodec | CODECS[3]), "its bytes are gone"
    else:
        assert type(rebuilt) is type(error)
        assert " bytes)" in rebuilt.__notes__[0] or "(TypeError" in rebuilt.__notes__[0]
    assert rebuilt.__notes__[-1] == HOP
    trace = rebuilt.traceback if isinstance(rebuilt, RemoteError) else rebuilt.__cause__.text  # type: ignore[union-attr]
    assert "in raised" in trace


async def test_a_small_limit_leaves_type_message_and_traceback(codec: Codec) -> None:
    group = ExceptionGroup("g" * 5000, [Locked("x" * 5000, None, n) for n in range(50)])
    for limit in (20_000, 3_000, 1_000):
        content = await encode_failure(raised(group), codec, hop=HOP, limit=limit)
        assert len(content) <= limit
        rebuilt = await decode_failure(content, codec)
        assert isinstance(rebuilt, RemoteError | ExceptionGroup)
        if isinstance(rebuilt, RemoteError):
            assert rebuilt.type_name == "builtins.ExceptionGroup"
            assert rebuilt.message.startswith("g")
            assert "Traceback" in rebuilt.traceback


@pytest.mark.parametrize("executor", [None, "thread"])
async def test_over_loopback(codec: Codec, namespace: str, executor: Any) -> None:
    def fail() -> None:
        raise Locked("x" * 200_000, "y" * 200_000, 5)

    task: Any = atask(fail, namespace=namespace, executor=executor)
    async with atasks.serve("loopback:", namespace=namespace) as worker:
        worker.transport.max_payload = LIMIT
        with pytest.raises(Locked) as caught:
            await task()
    assert caught.value.code == 5
    assert not hasattr(caught.value, "lock")
    assert len(caught.value.args[0]) == 4096 - len("") or len(caught.value.args[0]) < 4200


@pytest.mark.parametrize("kind", [CloudpickleCodec, MsgpackCodec])
@pytest.mark.parametrize("limit", [None, 16 * 2**20])
async def test_seventy_megabytes_of_lines_take_no_seconds(
    namespace: str, kind: type[Codec], limit: int | None
) -> None:
    codec = kind(namespace)
    error = raised(ExceptionGroup("g", [ValueError("x\n" * 35_000_000), KeyError("y")]))
    started = time.process_time()
    rebuilt = await decode_failure(await encode_failure(error, codec, hop=HOP, limit=limit), codec)
    taken = time.process_time() - started
    assert isinstance(rebuilt, ExceptionGroup)
    assert taken < 2, "it took eight to ten"
