"""Transports: the three methods that a user's needs, and the loopback."""

# Private attributes: `_pending` and `_waiting`: a call that is left behind is seen nowhere else. `_resolve` is
# what a transport calls when a reply arrives: it is called twice.

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

import atasks
from atasks import wire
from atasks.namespaces import namespaces
from atasks.options import TaskOptions
from atasks.router import Router
from atasks.tasks import atask
from atasks.transport.contract import Transport
from atasks.transport.loopback import LoopbackTransport
from atasks.wire import VERSION, Call, Reply, Status


class Direct(Transport):
    """The least that a user writes: the callback of the same process, by the three methods."""

    def __init__(self, namespace: str = "default") -> None:
        super().__init__(namespace)
        self.sent: list[tuple[str, bytes]] = []
        self.before: Callable[[], Awaitable[None]] | None = None
        self.change: Callable[[Any], Any] = lambda answer: answer

    async def connect(self) -> None:
        pass

    async def disconnect(self) -> None:
        pass

    async def send_request(self, name: str, content: bytes) -> bytes:
        self.sent.append((name, content))
        if self.before is not None:
            await self.before()
        assert self.callback is not None
        answer: bytes = self.change(await self.callback(name, content))
        return answer


@pytest.fixture
async def direct(namespace: str) -> AsyncIterator[Direct]:
    """A user's transport, connected, serving."""
    transport = Direct(namespace)
    await transport.connect()
    router = atasks.get_router(namespace)
    await router.activate(transport)
    yield transport
    await router.deactivate(grace=0)
    await transport.disconnect()


def adder(namespace: str) -> Any:
    @atask(name="add", namespace=namespace)
    async def add(a: int, b: int = 10) -> int:
        return a + b

    return add


# -- a user's transport


async def test_three_methods_are_enough(direct: Direct, namespace: str) -> None:
    add = adder(namespace)
    assert await add(1, 2) == 3
    assert await asyncio.gather(*(add(n) for n in range(5))) == [10, 11, 12, 13, 14]
    assert {name for name, _ in direct.sent} == {"add"}
    (call,) = wire.decode(direct.sent[0][1])
    assert isinstance(call, Call)
    assert call.task == "add"


async def test_nested_calls_over_three_methods(direct: Direct, namespace: str) -> None:
    @atask(namespace=namespace)
    async def fib(n: int) -> int:
        return n if n < 2 else await fib(n - 1) + await fib(n - 2)

    assert await fib(8) == 21
    calls = [wire.decode(content)[0] for _, content in direct.sent]
    roots = {call.root or call.id for call in calls if isinstance(call, Call)}
    assert len(roots) == 1, "the chain of calls travels inside"


async def test_the_callers_deadline_holds(direct: Direct, namespace: str) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    add = adder(namespace)
    direct.before = never
    with pytest.raises(atasks.CallTimeout, match=r"add did not finish within 0\.02 s"):
        await add.options(timeout=0.02)(1)


async def test_the_deadline_counts_for_a_transport_that_makes_an_error_of_its_cancellation(
    direct: Direct, namespace: str
) -> None:
    async def hide() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("aborted") from None

    add = adder(namespace)
    direct.before = hide
    with pytest.raises(atasks.CallTimeout):
        await add.options(timeout=0.02)(1)


async def test_the_workers_deadline_holds(direct: Direct, namespace: str) -> None:
    """A transport that loses the cancellation on its way: the worker stops the run by itself."""
    cancelled = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    tasks: list[asyncio.Task[bytes]] = []

    async def detached(name: str, content: bytes) -> bytes:
        tasks.append(asyncio.create_task(callback(name, content)))  # type: ignore[arg-type]
        return await asyncio.shield(tasks[0])

    callback = direct.callback
    assert callback is not None
    direct.callback = detached
    with pytest.raises(atasks.CallTimeout):
        await forever.options(timeout=1.0)()  # time enough to begin
    await asyncio.wait_for(cancelled.wait(), 5)
    (reply,) = wire.decode(await tasks[0])
    assert isinstance(reply, Reply)
    assert reply.status == Status.TIMED_OUT


async def test_cancelling_the_await_is_a_cancellation(direct: Direct, namespace: str) -> None:
    inside = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        inside.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "error", [OSError("secret"), TimeoutError("secret"), RuntimeError("secret"), KeyError("k")]
)
async def test_a_transport_that_raises(direct: Direct, namespace: str, error: Exception) -> None:
    async def fail() -> None:
        raise error

    add = adder(namespace)
    direct.before = fail
    with pytest.raises(atasks.CallConnectionLost, match="outcome cannot be known") as caught:
        await add.options(timeout=60)(1)
    assert caught.value.__cause__ is error
    assert "secret" not in str(caught.value)


async def test_a_library_that_cancels_itself_is_a_lost_connection(direct: Direct, namespace: str) -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    add = adder(namespace)
    direct.before = cancel
    with pytest.raises(atasks.CallConnectionLost):
        await add(1)


@pytest.mark.parametrize("answer", [None, "text", 3, [b"bytes"]])
async def test_a_transport_that_answers_no_bytes(direct: Direct, namespace: str, answer: Any) -> None:
    add = adder(namespace)
    direct.change = lambda _: answer
    with pytest.raises(atasks.CallConnectionLost, match=f"returned {type(answer).__name__} instead of bytes"):
        await add(1)


@pytest.mark.parametrize("answer", [b"", b"\xc1", b"\x90", wire.encode([Reply(9, "x", 0, b"")])])
async def test_a_transport_that_answers_nonsense(direct: Direct, namespace: str, answer: bytes) -> None:
    add = adder(namespace)
    direct.change = lambda _: answer
    with pytest.raises((atasks.DecodeError, atasks.CallConnectionLost)):
        await add(1)


async def test_the_answer_to_another_call_is_not_taken(direct: Direct, namespace: str) -> None:
    add = adder(namespace)
    answers: list[bytes] = []

    def swap(answer: bytes) -> bytes:
        answers.append(answer)
        return answers[0]

    direct.change = swap
    assert await add(1) == 11
    with pytest.raises(atasks.CallConnectionLost, match="not the reply to this call"):
        await add(2)


async def test_at_most_once_is_refused_before_anything_is_sent(direct: Direct, namespace: str) -> None:
    add = adder(namespace)
    with pytest.raises(atasks.NotSupported, match="Direct does not promise at-most-once delivery: use"):
        await add.options(delivery="at_most_once")(1)
    assert direct.sent == []


async def test_at_most_once_over_a_transport_that_declares_it(direct: Direct, namespace: str) -> None:
    class Promising(Direct):
        supports = frozenset({"at_most_once"})

    add = adder(namespace)
    transport = Promising(namespace)
    await atasks.get_router(namespace).activate(transport)
    assert await add.options(delivery="at_most_once")(1) == 11
    (call,) = wire.decode(transport.sent[0][1])
    assert isinstance(call, Call)
    assert call.delivery == wire.AT_MOST_ONCE


async def test_a_message_that_is_changed_on_its_way_is_answered(direct: Direct, namespace: str) -> None:
    add = adder(namespace)
    callback = direct.callback
    assert callback is not None
    direct.callback = lambda name, content: callback(name, content[:-3])
    with pytest.raises(atasks.DecodeError, match="request refused"):
        await add(1)


@pytest.mark.parametrize("method", ["connect", "disconnect", "send_request"])
async def test_a_method_that_is_missing_is_named(namespace: str, method: str) -> None:
    class Empty(Transport):
        pass

    arguments = ("name", b"") if method == "send_request" else ()
    with pytest.raises(NotImplementedError, match=rf"Empty has no {method}\(\)"):
        await getattr(Empty(namespace), method)(*arguments)


async def test_a_call_before_anything_serves_a_user_transport(namespace: str) -> None:
    add = adder(namespace)
    Direct(namespace)
    with pytest.raises(atasks.CallConnectionLost):
        await add(1)


# -- the loopback


@asynccontextmanager
async def connected(namespace: str, cls: type[LoopbackTransport] = LoopbackTransport) -> AsyncIterator[Any]:
    transport = cls(namespace)
    await transport.connect()
    try:
        yield transport
    finally:
        await atasks.get_router(namespace).deactivate(grace=0)
        await transport.disconnect()


async def test_loopback_answers_through_the_callback(namespace: str) -> None:
    seen: list[tuple[str, bytes]] = []

    async def callback(name: str, content: bytes) -> bytes:
        seen.append((name, content))
        return content[::-1]

    async with connected(namespace) as transport:
        with pytest.raises(atasks.NoWorker):
            await transport.send_request("anything", b"abc")
        await transport.register_callback(callback)
        assert await transport.send_request("anything", b"abc") == b"cba"
        await transport.unregister_callback()
        with pytest.raises(atasks.NoWorker):
            await transport.send_request("anything", b"abc")
    assert seen == [("anything", b"abc")]


async def test_a_loopback_with_its_own_send_request_gets_every_call(namespace: str) -> None:
    class Spy(LoopbackTransport):
        seen: tuple[str, ...] = ()

        async def send_request(self, name: str, content: bytes) -> bytes:
            self.seen += (name,)
            return await super().send_request(name, content)

    @atask(name="outer", namespace=namespace)
    async def outer(n: int) -> int:
        return 2 * await add(n, 1)

    add = adder(namespace)
    async with connected(namespace, Spy) as transport:
        with pytest.raises(atasks.NoWorker):
            await add(1)
        await atasks.get_router(namespace).activate(transport)
        assert await outer(2) == 6
        assert transport.seen == ("add", "outer", "add")


async def test_a_call_waits_for_a_worker_and_a_deadline_ends_the_wait(namespace: str) -> None:
    add = adder(namespace)
    async with connected(namespace) as transport:
        waiting = asyncio.create_task(add(1))
        with pytest.raises(atasks.CallTimeout):
            await add.options(timeout=0.01)(2)
        gone = asyncio.create_task(add(3))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert len(transport._waiting) == 1
        await atasks.get_router(namespace).activate(transport)
        assert await waiting == 11
        assert not transport._waiting


async def test_on_no_worker_error(namespace: str) -> None:
    add = adder(namespace)
    async with connected(namespace) as transport:
        with pytest.raises(atasks.NoWorker, match="activate a router"):
            await add.options(on_no_worker="error")(1)
        assert not transport._pending


async def test_awaits_end_at_disconnect_and_never_run_later(namespace: str) -> None:
    ran: list[int] = []

    @atask(namespace=namespace)
    async def note(n: int) -> None:
        ran.append(n)

    router = atasks.get_router(namespace)
    transport = LoopbackTransport(namespace)
    await transport.connect()
    waiting = asyncio.create_task(note(1))
    await asyncio.sleep(0)
    await transport.disconnect()
    with pytest.raises(atasks.CallConnectionLost, match=r"disconnected: the outcome of .*note cannot be known"):
        await waiting
    with pytest.raises(atasks.NotConnected):
        await note(2)
    await transport.connect()
    await router.activate(transport)
    await note(3)
    await router.deactivate()
    await transport.disconnect()
    assert ran == [3]


async def test_disconnect_before_deactivate(namespace: str) -> None:
    """The wrong order ends the awaits all the same, and what runs is stopped by the drain."""
    inside = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        inside.set()
        await asyncio.Event().wait()

    router = atasks.get_router(namespace)
    transport = LoopbackTransport(namespace)
    await transport.connect()
    await router.activate(transport)
    waiting = asyncio.create_task(forever())
    await inside.wait()
    await transport.disconnect()
    with pytest.raises(atasks.CallConnectionLost):
        await waiting
    await router.deactivate(grace=0)
    assert not transport._waiting


@pytest.mark.parametrize("on_no_worker", ["wait", "error"])
async def test_what_a_drain_gives_back_waits_for_the_next_worker(
    namespace: str, on_no_worker: Literal["wait", "error"]
) -> None:
    attempts: list[int] = []
    inside = asyncio.Event()

    @atask(namespace=namespace, on_no_worker=on_no_worker)
    async def twice() -> int:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            inside.set()
            await asyncio.Event().wait()
        return len(attempts)

    async with connected(namespace) as transport:
        router = atasks.get_router(namespace)
        await router.activate(transport, concurrency=1)
        first, second = asyncio.create_task(twice()), asyncio.create_task(twice())
        await inside.wait()
        await router.deactivate(grace=0)
        assert not first.done()
        await router.activate(transport)
        assert sorted(await asyncio.gather(first, second)) == [2, 3]


async def test_calls_that_are_awaited_by_a_run_are_served_while_it_drains(namespace: str) -> None:
    """Nobody else can: given back with a slot to spare for none of them, they come back and run."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace)
    async def leaf(n: int) -> int:
        inside.set()
        await go_on.wait()
        return n

    @atask(namespace=namespace)
    async def root() -> int:
        return sum(await asyncio.gather(*(leaf(n) for n in range(5))))

    async with connected(namespace) as transport:
        router = atasks.get_router(namespace)
        await router.activate(transport, concurrency=1)
        call = asyncio.create_task(root())
        await inside.wait()
        drain = asyncio.create_task(router.deactivate(grace=20))
        for _ in range(10):
            await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.wait_for(call, 10) == 10
        await drain


async def test_duplicate_and_late_replies_are_dropped(namespace: str) -> None:
    transport = LoopbackTransport(namespace)
    await transport.connect()
    router = atasks.get_router(namespace)
    add = adder(namespace)
    await router.activate(transport)
    resolve, replies = transport._resolve, []

    def twice(reply: Reply) -> None:
        replies.append(reply)
        resolve(reply)
        resolve(reply)

    transport._resolve = twice  # type: ignore[method-assign]
    assert await asyncio.gather(add(1), add(2)) == [11, 12]
    for reply in replies:
        resolve(reply)
    assert not transport._pending
    await router.deactivate()
    await transport.disconnect()
    resolve(replies[0])


async def test_a_superseded_worker_that_drains_leaves_the_other_one_attached(namespace: str) -> None:
    add = adder(namespace)
    async with connected(namespace) as transport:
        router = atasks.get_router(namespace)
        await router.activate(transport)
        other = atasks.Worker(Router(namespace), transport)
        await other.start()
        await router.deactivate(grace=0)
        assert await asyncio.wait_for(add(1), 5) == 11
        await other.drain()


async def test_two_transports_over_one_codec_do_not_mix(namespace: str) -> None:
    add = adder(namespace)
    async with connected(namespace) as one:
        async with atasks.connect("loopback:", namespace=namespace) as two:
            assert await add(1) == 11
            assert one is not two
            assert not one._pending
        assert atasks.get_transport(namespace) is one


async def test_a_request_that_is_not_connected_says_so(namespace: str) -> None:
    transport = LoopbackTransport(namespace)
    call = Call(VERSION, "id", "task", b"", "codec", sent_ms=int(time.time() * 1000))
    with pytest.raises(
        atasks.NotConnected, match=r"LoopbackTransport is not connected: await its connect\(\) first"
    ):
        await transport.request(call, TaskOptions())


@pytest.mark.parametrize("bad", ["", "two words", "x" * 101])
def test_the_namespace_of_a_transport_is_checked(bad: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        LoopbackTransport(bad)
    assert bad not in namespaces.names()
