"""The router: one of the user's own, and what an await makes of every reply."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import atasks
from atasks import wire
from atasks.definitions import ATask
from atasks.options import TaskOptions
from atasks.router import Router
from atasks.tasks import atask
from atasks.transport.loopback import LoopbackTransport
from atasks.wire import VERSION, Call, Reply, Status
from atasks.worker.held_call import HeldCall
from tests.unit.codecs.json_codec import Json

# -- a router


async def test_an_override_sees_every_call_and_their_options_apply(namespace: str) -> None:
    seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    sent: list[tuple[Call, TaskOptions]] = []

    class Watching(Router):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            seen.append((name, args, kwargs))
            if name == "task":
                await other(1)
                await super().send_request("other", 2)
            return await super().send_request(name, *args, **kwargs)

    class Noting(LoopbackTransport):
        async def request(self, call: Call, options: TaskOptions) -> Reply:
            sent.append((call, options))
            return await super().request(call, options)

    router = Watching(namespace)

    @atask(namespace=namespace, name="task", max_attempts=4)
    async def task(name: str, args: int = 0) -> str:
        return name

    @atask(namespace=namespace, name="other", priority=1)
    async def other(n: int) -> int:
        return n

    transport = Noting(namespace)
    await transport.connect()
    await router.activate(transport)
    assert await task.options(timeout=50, queue="gpu")(name="me", args=3) == "me"
    await router.deactivate()
    await transport.disconnect()

    assert seen == [("task", (), {"name": "me", "args": 3}), ("other", (1,), {})]
    assert [(call.task, options) for call, options in sent] == [
        ("other", TaskOptions(priority=1)),
        ("other", TaskOptions(priority=1)),
        ("task", TaskOptions(timeout=50, queue="gpu", max_attempts=4)),
    ]
    assert [(call.timeout_ms, call.max_attempts) for call, _ in sent] == [(None, 3), (None, 3), (50_000, 4)]
    assert all(type(call.task) is str for call, _ in sent)


async def test_an_override_may_change_the_call_and_the_result(namespace: str) -> None:
    class Doubling(Router):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            return 2 * await super().send_request(name, *(arg + 1 for arg in args), **kwargs)

    Doubling(namespace)

    @atask(namespace=namespace)
    async def same(n: int) -> int:
        return n

    async with atasks.connect(namespace=namespace):
        assert await same(1) == 4


async def test_an_override_may_answer_itself(namespace: str) -> None:
    class Cache(Router):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            return (name, args, kwargs)

    Cache(namespace)

    @atask(namespace=namespace, name="f")
    async def f(n: int) -> int:
        return n

    assert await f(1) == ("f", (1,), {})  # type: ignore[comparison-overlap]
    with pytest.raises(TypeError):
        f()  # type: ignore[call-arg]


async def test_a_second_router_adopts_the_registry_and_gets_the_calls(namespace: str) -> None:
    first = atasks.get_router(namespace)

    @atask(namespace=namespace)
    async def one() -> int:
        return 1

    calls: list[str] = []

    class Second(Router):
        async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return await super().send_request(name, *args, **kwargs)

    async with atasks.connect(namespace=namespace):
        second = Second(namespace)
        assert atasks.get_router(namespace) is second
        assert second.registry is first.registry
        assert second.registry.names() == [one.name]
        assert await one() == 1
        assert calls == [one.name]


async def test_a_call_by_name_alone(namespace: str) -> None:
    router = Router(namespace)

    async def add(a: int, b: int) -> int:
        return a + b

    task = router.register_atask("add", coro=add, options={"timeout": 5})
    assert isinstance(task, ATask)
    assert (task.name, task.task_options, task.local) == ("add", TaskOptions(timeout=5), add)
    async with atasks.connect(namespace=namespace):
        assert await router.send_request("add", 1, b=2) == 3
        with pytest.raises(atasks.UnknownTask, match=r"'ad' \(did you mean 'add'\?\)"):
            await router.send_request("ad", 1, b=2)
        with pytest.raises(TypeError, match="missing 1 required"):
            await router.send_request("add", 1)


@pytest.mark.parametrize("bad", ["", "with space", 5])
def test_the_namespace_is_checked(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="namespace"):
        Router(bad)


async def test_activate_and_deactivate(namespace: str) -> None:
    router = Router(namespace)

    @atask(namespace=namespace)
    async def one() -> int:
        return 1

    await router.deactivate()
    transports = [LoopbackTransport(namespace), LoopbackTransport(namespace)]
    for transport in transports:
        await transport.connect()
    await router.activate(transports[1])
    await router.activate(transports[1])
    assert await one() == 1
    await router.activate(transports[0])
    assert transports[1].callback is None
    assert transports[0].callback is not None
    await router.deactivate()
    await router.deactivate()
    for transport in transports:
        assert transport.callback is None
        await transport.disconnect()


# -- replies


class Answering(LoopbackTransport):
    """Every call ends as it is told."""

    reply: Reply

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        reply = self.reply
        return Reply(VERSION, call.id, reply.status, reply.payload, reply.codec, "worker")


def without_value(status: int, attempts: int = 0) -> Reply:
    return wire.ended("", status, "why", attempts=attempts)


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (without_value(Status.CANCELLED), atasks.CallCancelled, "why"),
        (without_value(Status.TIMED_OUT), atasks.CallTimeout, "why"),
        (without_value(Status.UNKNOWN_TASK), atasks.UnknownTask, "why"),
        (without_value(Status.WORKER_LOST, attempts=3), atasks.WorkerLost, "why"),
        (without_value(Status.ENCODE_ERROR), atasks.EncodeError, "why"),
        (without_value(Status.DECODE_ERROR), atasks.DecodeError, "why"),
        (without_value(Status.TOO_LARGE), atasks.PayloadTooLarge, "why"),
        (without_value(Status.FAILED), atasks.AtasksError, "why"),
        (without_value(77), atasks.AtasksError, "status 77, which this version does not know"),
        (Reply(VERSION, "", Status.CANCELLED, b"\xc1"), atasks.CallCancelled, "cannot be read"),
        (
            Reply(VERSION, "", Status.VALUE, b"1", "msgpack"),
            atasks.DecodeError,
            "'msgpack', and this side has 'Json'",
        ),
        (
            Reply(VERSION, "", Status.RAISED, b"1", "pickle"),
            atasks.DecodeError,
            "'pickle', and this side has 'Json'",
        ),
        (Reply(VERSION, "", Status.RAISED, b"1", "Json"), atasks.RemoteError, "cannot be read"),
        (
            Reply(VERSION, "", Status.VALUE, b"{", "Json"),
            atasks.DecodeError,
            "the result of one cannot be decoded",
        ),
    ],
)
async def test_how_replies_end(namespace: str, reply: Reply, error: type[Exception], message: str) -> None:
    Json(namespace)

    @atask(namespace=namespace, name="one")
    async def one() -> int:
        return 1

    transport = Answering(namespace)
    transport.reply = reply
    await transport.connect()
    with pytest.raises(error, match=message) as caught:
        await one()
    assert type(caught.value) is error or error is atasks.AtasksError
    if isinstance(caught.value, atasks.WorkerLost):
        assert caught.value.attempts == 3
    await transport.disconnect()


# -- nested calls


async def test_the_chain_of_calls(namespace: str) -> None:
    @atask(namespace=namespace)
    async def leaf() -> Any:
        call = atasks.current_call()
        return (call.id, call.parent_id, call.root_id)

    @atask(namespace=namespace)
    async def middle() -> Any:
        call = atasks.current_call()
        return [(call.id, call.parent_id, call.root_id), await leaf()]

    @atask(namespace=namespace)
    async def root() -> Any:
        call = atasks.current_call()
        return [(call.id, call.parent_id, call.root_id), *await middle()]

    async with atasks.connect(namespace=namespace):
        one, two, three = await root()
    assert one[1:] == (None, one[0])
    assert two[1:] == (one[0], one[0])
    assert three[1:] == (two[0], one[0])
    assert len({one[0], two[0], three[0]}) == 3


async def test_nested_calls_have_what_is_left(namespace: str) -> None:
    sent: list[Call] = []

    class Noting(LoopbackTransport):
        async def request(self, call: Call, options: TaskOptions) -> Reply:
            sent.append(call)
            return await super().request(call, options)

    @atask(namespace=namespace, name="inner")
    async def inner() -> None: ...

    @atask(namespace=namespace, name="outer")
    async def outer() -> None:
        await inner()
        await inner.options(timeout=1)()
        await inner.options(timeout=1000)()

    transport = Noting(namespace)
    await transport.connect()
    await atasks.get_router(namespace).activate(transport)
    await outer.options(timeout=100)()
    await outer()
    await atasks.get_router(namespace).deactivate()
    await transport.disconnect()
    with_deadline = [call.timeout_ms for call in sent[:4]]
    assert with_deadline[0] == 100_000
    assert with_deadline[2] == 1000
    assert all(left is not None and 1000 < left <= 100_000 for left in (with_deadline[1], with_deadline[3]))
    assert [call.timeout_ms for call in sent[4:]] == [None, None, 1000, 1_000_000]


async def test_nested_calls_when_next_to_nothing_is_left(namespace: str) -> None:
    """Never a call without a deadline, nor one of 0 ms, because time ran out while it was made."""
    sent: list[int | None] = []
    outcome: list[str] = []

    class Noting(LoopbackTransport):
        async def request(self, call: Call, options: TaskOptions) -> Reply:
            sent.append(call.timeout_ms)
            return await super().request(call, options)

    def this_run() -> HeldCall:
        from atasks.current import serving

        run = serving.get()
        assert run is not None
        return run

    @atask(namespace=namespace)
    async def inner() -> None:
        await asyncio.Event().wait()

    @atask(namespace=namespace)
    async def outer() -> str:
        run = this_run()
        for left in (0.0001, 0.0, -1.0):
            run.deadline = run.loop.time() + left
            try:
                await inner.options(timeout=50)()
            except atasks.CallTimeout as error:
                outcome.append(str(error))
        assert (run.slots, run.awaits, run.worker.parked) == (1, 0, 0)
        return "done"

    transport = Noting(namespace)
    await transport.connect()
    await atasks.get_router(namespace).activate(transport)
    assert await outer.options(timeout=60)() == "done"
    await atasks.get_router(namespace).deactivate()
    await transport.disconnect()
    assert sent[0] == 60_000
    assert set(sent[1:]) <= {1}
    assert len(outcome) == 3
    assert "no time is left for" in outcome[2]


async def test_a_deadline_that_passes_between_calls(namespace: str) -> None:
    """The run is cancelled at its deadline wherever it is, and the caller learns it as a timeout."""
    steps: list[str] = []

    @atask(namespace=namespace)
    async def quick() -> None: ...

    @atask(namespace=namespace)
    async def outer() -> None:
        try:
            while True:
                await quick()
        finally:
            steps.append("left")

    async with atasks.connect(namespace=namespace):
        with pytest.raises(atasks.CallTimeout):
            await outer.options(timeout=0.5)()  # time enough to begin
        await quick()
    assert steps == ["left"]


async def test_too_large(namespace: str) -> None:
    @atask(namespace=namespace)
    async def make(size: int, data: bytes = b"") -> bytes:
        return bytes(size)

    async with atasks.connect(namespace=namespace) as transport:
        transport.max_payload = 1000
        with pytest.raises(
            atasks.PayloadTooLarge, match=r"the arguments of .*make have \d+ bytes, over the limit of 1000"
        ):
            await make(1, bytes(1000))
        with pytest.raises(
            atasks.PayloadTooLarge, match=r"the result of .*make has \d+ bytes, over the limit of 1000"
        ):
            await make(1000)
        assert await make(10) == bytes(10)
