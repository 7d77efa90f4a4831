"""The current call, what travels with calls, and call ids."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

import atasks
from atasks import carry
from atasks.current import CurrentCall, carried, new_call_id
from atasks.tasks import atask

trace: ContextVar[Any] = ContextVar("tests-trace")
other: ContextVar[str] = ContextVar("tests-other", default="default")


def fields(call: CurrentCall) -> dict[str, Any]:
    return {name: getattr(call, name) for name in CurrentCall.__slots__}


def test_outside_a_call_everything_is_none() -> None:
    assert fields(atasks.current_call()) == dict.fromkeys(
        ("attempt", "deadline", "id", "key", "name", "parent_id", "queue", "root_id", "state", "try_")
    )
    assert repr(atasks.current_call()) == "<CurrentCall: none>"


async def test_inside_a_call(namespace: str) -> None:
    @atask(namespace=namespace)
    async def look() -> Any:
        call = atasks.current_call()
        assert call is atasks.current_call()
        assert repr(call) == f"<CurrentCall {call.id} attempt 1>"
        now = asyncio.get_running_loop().time()
        return fields(call), call.deadline is not None and now < call.deadline <= now + 60

    async with atasks.connect(namespace=namespace):
        call, in_time = await look.options(timeout=60)()
        assert in_time
        assert call["id"] == call["root_id"]
        assert (call["attempt"], call["parent_id"], call["state"]) == (1, None, None)
        second, _ = await look()
        assert second["deadline"] is None
        assert second["id"] != call["id"]
        assert atasks.current_call().id is None


async def test_in_tasks_and_threads_that_a_call_starts(namespace: str) -> None:
    @atask(namespace=namespace)
    async def look() -> list[str | None]:
        async def current() -> str | None:
            return atasks.current_call().id

        found = [await current(), await asyncio.create_task(current())]
        found += await asyncio.gather(current(), current())
        found.append(await asyncio.to_thread(lambda: atasks.current_call().id))
        bare: list[str | None] = []
        thread = threading.Thread(target=lambda: bare.append(atasks.current_call().id))
        thread.start()
        thread.join()
        return [*found, *bare]

    async with atasks.connect(namespace=namespace):
        *found, bare = await look()
    assert len(set(found)) == 1
    assert found[0] is not None
    assert bare is None


async def test_calls_that_run_together_have_each_their_own(namespace: str) -> None:
    meet = asyncio.Barrier(5)

    @atask(namespace=namespace)
    async def look() -> bool:
        before = atasks.current_call().id
        await meet.wait()
        return atasks.current_call().id == before

    async with atasks.connect(namespace=namespace):
        assert await asyncio.gather(*(look() for _ in range(5))) == [True] * 5


async def test_no_context_variable_travels_by_itself(namespace: str) -> None:
    @atask(namespace=namespace)
    async def look() -> Any:
        return trace.get("nothing"), other.get()

    @atask(namespace=namespace)
    async def nested() -> Any:
        trace.set("the worker's")
        return await look()

    trace.set("the caller's")
    other.set("set")
    async with atasks.connect(namespace=namespace):
        assert await look() == ("nothing", "default")
        assert await nested() == ("nothing", "default")
    assert trace.get() == "the caller's"


async def test_carried_variables_travel(namespace: str) -> None:
    assert carry(trace) is trace
    assert carry(trace) is trace

    @atask(namespace=namespace)
    async def look() -> Any:
        found = trace.get("nothing"), other.get()
        trace.set("nothing travels back")
        return found

    @atask(namespace=namespace)
    async def nested(change: bool) -> Any:
        if change:
            trace.set({"by": "the worker"})
        return await asyncio.gather(look(), asyncio.create_task(look()))

    async with atasks.connect(namespace=namespace):
        assert await look() == ("nothing", "default")
        trace.set({"id": 1})
        other.set("not carried")
        assert await look() == ({"id": 1}, "default")
        assert await nested(False) == [({"id": 1}, "default")] * 2
        assert await nested(True) == [({"by": "the worker"}, "default")] * 2
        assert trace.get() == {"id": 1}
        context = contextvars.copy_context()
        context.run(trace.set, "another context")
        assert (await asyncio.create_task(look(), context=context))[0] == "another context"


async def test_a_carried_value_that_cannot_be_encoded(namespace: str) -> None:
    @atask(namespace=namespace)
    async def nothing() -> None: ...

    carry(trace)
    trace.set(threading.Lock())
    async with atasks.connect(namespace=namespace):
        with pytest.raises(atasks.EncodeError):
            await nothing()


async def test_a_carried_variable_that_the_worker_does_not_know(namespace: str) -> None:
    class Forgetful(atasks.LoopbackTransport):
        async def request(self, call: Any, options: Any) -> Any:
            carried.clear()
            return await super().request(call, options)

    @atask(namespace=namespace)
    async def look() -> Any:
        return trace.get("nothing")

    transport = Forgetful(namespace)
    await transport.connect()
    await atasks.get_router(namespace).activate(transport)
    carry(trace)
    trace.set("value")
    assert await look() == "nothing"
    await atasks.get_router(namespace).deactivate()
    await transport.disconnect()


def test_two_variables_of_one_name() -> None:
    carry(trace)
    with pytest.raises(ValueError, match="another context variable named 'tests-trace' is carried already"):
        carry(ContextVar("tests-trace"))


def test_call_ids_are_unique_and_fit_the_wire() -> None:
    ids = [new_call_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 64


def test_a_call_id_tells_nothing_of_others() -> None:
    ids = [new_call_id() for _ in range(1000)]
    assert {len(call_id) for call_id in ids} == {32}
    for beginning in (8, 16):
        shared = Counter(call_id[:beginning] for call_id in ids)
        assert max(shared.values()) <= 2, "128 bits of chance, none of them the same for two"


def test_call_ids_of_many_threads_are_unique() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: [new_call_id() for _ in range(500)], range(40)))
    ids = [call_id for some in found for call_id in some]
    assert len(set(ids)) == len(ids) == 20_000
