"""Calls that share an idempotency key, over a hub: they have one journal, and share their steps."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from atasks import CallTimeout, MsgpackCodec, atask, current_call, once, serve
from atasks.testing import until
from atasks.transport.backends.local.messages import Request
from atasks.wire import VERSION, Call, Cancel, Reply
from tests.faults.history import settled
from tests.local.around_hub import of, process


async def keyed(codec: MsgpackCodec, number: int, orphan: int = 0) -> Request:
    """A call of `resuming` with the value 7, and with the key that all of them have."""
    payload = await codec.encode([[7], {}])
    call = Call(VERSION, f"call-{number}", "resuming", payload, codec.name, key="a-key", orphan=orphan)
    return Request("default", call)


async def test_calls_that_share_an_idempotency_key_end(path: str) -> None:
    """Their steps have the same ids: each of them awaits the one call of a step, also where another one of them is
    cancelled."""
    url, namespace = f"unix://{path}", f"keys-{uuid.uuid4().hex[:8]}"
    codec = MsgpackCodec(namespace)
    begun, let = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace, name="step")
    async def step(value: int) -> int:
        begun.set()
        await let.wait()
        return value

    @atask(namespace=namespace, name="resuming", resume=True, orphan="run")
    async def resuming(value: int) -> int:
        return await step(value)

    calls = [await keyed(codec, number, orphan=number % 2) for number in range(20)]
    async with serve(url, namespace=namespace) as worker:
        async with process(path, namespace=namespace) as (here, received):
            here.send(calls[0])
            await settled(begun.wait(), "the first one has made its step")
            for each in calls[1:]:
                here.send(each)
            await until(lambda: worker.held == 21, "all are there, and the step")
            here.send(Cancel(VERSION, ["call-0", "call-3"]))
            await until(lambda: worker.held < 20, "two are cancelled")
            let.set()
            await until(lambda: len(of(received, Reply)) == 18, "the others are answered")
            assert {item.payload for item in of(received, Reply) if isinstance(item, Reply)} == {b"\x07"}
        await until(lambda: not worker.held, "nothing is left")


@pytest.mark.parametrize("hurried", ["call-0", "call-1"])
async def test_calls_that_share_an_idempotency_key_have_deadlines_of_their_own(path: str, hurried: str) -> None:
    """The call of the step that they share ends by no deadline of the other one, and by one's own. A call that is
    made again has an id of its own: the reply to the first one may come late, and says that it was too slow."""
    url, namespace = f"unix://{path}", f"keys-{uuid.uuid4().hex[:8]}"
    codec = MsgpackCodec(namespace)
    let = asyncio.Event()
    made: list[str] = []

    @atask(namespace=namespace, name="step")
    async def step(value: int) -> int:
        made.append(current_call().id)
        await let.wait()
        return value

    @atask(namespace=namespace, name="resuming", resume=True, orphan="run")
    async def resuming(value: int) -> int:
        try:
            return await step.options(timeout=1.0 if current_call().id == hurried else None)(value)
        except CallTimeout:
            return 0

    async with serve(url, namespace=namespace) as worker, process(path, namespace=namespace) as (here, received):
        for number in range(2):
            here.send(await keyed(codec, number))
            await until(lambda held=number + 2: worker.held == held, "it makes its step, or shares it")
        await until(lambda: of(received, Reply), "one of them has waited for long enough")
        await asyncio.sleep(0.3)
        let.set()
        await until(lambda: len(of(received, Reply)) == 2, "the other one is answered")
    found = {reply.id: reply.payload for reply in of(received, Reply) if isinstance(reply, Reply)}
    assert found.pop(hurried) == b"\x00"
    assert list(found.values()) == [b"\x07"]
    assert len(made) == len(set(made)) == (2 if hurried == "call-0" else 1)


@pytest.mark.parametrize("how", ["ends", "is cancelled"])
async def test_a_call_leaves_the_journal_to_one_that_opened_it_since(path: str, how: str) -> None:
    """Both have the same idempotency key, and so one journal."""
    url, namespace = f"unix://{path}", f"keys-{uuid.uuid4().hex[:8]}"
    codec = MsgpackCodec(namespace)
    first, second = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace, name="resuming", resume=True, orphan="run")
    async def resuming(value: int) -> int:
        await once(int)
        await (first if current_call().id == "call-0" else second).wait()
        await once(int)
        return value

    async with serve(url, namespace=namespace) as worker, process(path, namespace=namespace) as (here, received):
        for number in range(2):
            here.send(await keyed(codec, number))
            await until(lambda held=number + 1: worker.held == held, "it has begun")
            await asyncio.sleep(0.3)
        if how == "ends":
            first.set()
        else:
            here.send(Cancel(VERSION, ["call-0"]))
        await until(lambda: worker.held == 1, "the first one is over")
        await asyncio.sleep(0.3)
        second.set()
        await until(lambda: not worker.held, "so is the second one")
        await until(lambda: "call-1" in _payloads(received), "it is answered")
    assert _payloads(received)["call-1"] == b"\x07"


def _payloads(received: list[object]) -> dict[str, bytes]:
    """Call -> the payload of its reply, of those that have come."""
    return {item.id: bytes(item.payload) for item in of(received, Reply) if isinstance(item, Reply)}
