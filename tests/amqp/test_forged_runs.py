"""Runs that no `submit` has made: a worker holds what it is sent to what can be submitted. In memory too."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from typing import Any

import pytest

import atasks
from atasks import DecodeError, atask
from atasks.namespaces import namespaces
from atasks.options import TaskOptions
from atasks.pipeline import Handle, bind, collect, flat_map, fork, group, map, ordered, stage
from atasks.pipeline.stages.fork import MAX_WAYS
from atasks.pipeline.submitted.blueprint import MAX_STAGES, blueprint, read
from atasks.pipeline.submitted.submit import RUN
from atasks.router import get_router
from atasks.submitted.handle import records_of, step_id
from atasks.testing import soon
from atasks.wire import VERSION, Reply, Status
from tests.amqp.conftest import Connect

OTHERS = "forged-others"

ran: list[int] = []


@atask
async def double(x: int) -> int:
    return 2 * x


@atask
async def some(x: int) -> list[int]:
    return list(range(x))


@atask(namespace=OTHERS)
async def secret(x: int) -> int:
    ran.append(x)
    return x


@atask
async def gated(x: int) -> int:
    await asyncio.Event().wait()
    return x


def honest() -> list[Any]:
    inner = stage(double) | stage(double)
    return blueprint(
        (
            flat_map(some)
            | map(double, bind=bind(1), param_name="x", workers=3)
            | fork(map(inner), map(double) | ordered(3))
            | group(double, inner)
            | collect(2)
        ).stages
    )


def changed(change: Callable[[list[Any]], object]) -> list[Any]:
    data = copy.deepcopy(honest())
    change(data)
    return data


def option(name: str, value: Any) -> Any:
    return changed(lambda data: data[1]["options"].__setitem__(name, value))


def call_option(name: str, value: Any) -> Any:
    return changed(lambda data: data[0]["function"]["options"].__setitem__(name, value))


def nested(levels: int) -> Any:
    data = blueprint(map(double).stages)
    for _ in range(levels):
        stage_ = blueprint(map(stage(double)).stages)
        stage_[0]["function"] = {"pipeline": data}
        data = stage_
    return data


double_data = blueprint(map(double).stages)
FORGED: dict[str, Any] = {
    "another namespace": blueprint(map(secret).stages) + double_data,
    "another namespace within": changed(
        lambda data: data[2]["pipelines"][0][0]["function"]["pipeline"][1]["function"].update(namespace=OTHERS)
    ),
    "another namespace in a group": changed(
        lambda data: data[3]["members"][0]["function"].update(namespace=OTHERS)
    ),
    "too many workers": option("workers", 10**9),
    "no workers": option("workers", 0),
    "workers that are no number": option("workers", 1.5),
    "a negative throttle": option("throttle", -1),
    "a timeout that is not one": option("timeout", float("nan")),
    "a timeout without an end": option("timeout", float("inf")),
    "an option of processes": option("multiprocess", True),
    "a hook": option("on_start", "os.system"),
    "no option": option("x", 1),
    "unpacked and by name": option("unpack", True),
    "bound to nothing": option("bind", 3),
    "bound by a number": option("bind", [[1], {1: 2}]),
    "an on_error without a namespace": changed(
        lambda data: data[1]["options"].update(skip_errors=True, on_error={"task": double.name})
    ),
    "a limit of a period of nothing": option("limit", {"name": "x", "namespace": "default", "rule": [0, 1, 0.0]}),
    "a limit of more than numbers reach": option(
        "limit", {"name": "x", "namespace": "default", "rule": [0, 10**400, 1.0]}
    ),
    "a priority": call_option("priority", 10**6),
    "a queue": call_option("queue", "x" * 1000),
    "an executor": call_option("executor", "process"),
    "a name of an atask": call_option("name", "other"),
    "a delivery": call_option("delivery", "often"),
    "a wide fork": [{"kind": "fork", "pipelines": [double_data] * 20_000}],
    "a fork somewhat too wide": [{"kind": "fork", "pipelines": [double_data] * (MAX_WAYS + 1)}],
    "a fork of forks": [{"kind": "fork", "pipelines": [[{"kind": "fork", "pipelines": [double_data] * 99}]] * 99}],
    "a fork of nothing": [{"kind": "fork", "pipelines": []}],
    "a wide group": changed(lambda data: data[3].update(members=data[3]["members"] * 20_000)),
    "an empty group": changed(lambda data: data[3].update(members=[])),
    "a long pipeline": double_data * (MAX_STAGES + 1),
    "deep pipelines": nested(MAX_STAGES + 1),
    "a window of nothing": changed(lambda data: data[2]["pipelines"][1][1].update(window=0)),
    "lists of nothing": changed(lambda data: data[4].update(size=-2)),
    "a role": changed(lambda data: data[0].update(role="reduce")),
    "a kind": changed(lambda data: data[0].update(kind="exec")),
    "no kind": changed(lambda data: data[0].pop("kind")),
    "no function": changed(lambda data: data[0].update(function={})),
    "a function that is none": changed(lambda data: data[0].update(function=print)),
    "too much": changed(lambda data: data[0].update(extra=1)),
    "no list": {"kind": "collect", "size": None},
    "a number": 3,
}


def test_what_can_be_submitted_can_be_read() -> None:
    assert len(read(honest(), "default")) == 5


@pytest.mark.parametrize("name", FORGED)
def test_what_cannot_be_submitted_is_refused_at_once(name: str) -> None:
    before = time.thread_time()
    with pytest.raises(DecodeError, match="cannot run on workers"):
        read(FORGED[name], "default")
    assert time.thread_time() - before < 1


@pytest.mark.parametrize("namespace", ["", "named-by-a-stranger"])
def test_stages_of_another_namespace_leave_nothing_of_it(namespace: str) -> None:
    stages = changed(lambda data: data[0]["function"].update(namespace=namespace))
    with pytest.raises(DecodeError, match="its own namespace only"):
        read(stages, "default")
    assert namespace not in namespaces.names()


async def forged(stages: Any, count: int = 1) -> Handle[Any]:
    router = get_router()
    options = TaskOptions(orphan="run", batch=False)
    call = await router.request_to_keep(RUN, (stages, [2], {}), options, router.transport())
    call.id = f"{call.id}.{count}"
    await records_of(router).begin(call, options)
    return Handle(call.id)


@pytest.mark.parametrize("name", ["another namespace", "too many workers", "a wide fork", "a hook", "a number"])
async def test_a_worker_ends_such_a_run_with_the_reason(connect: Connect, name: str) -> None:
    async with connect(), atasks.connect("loopback:", namespace=OTHERS):
        handle = await soon(forged(FORGED[name]))
        with pytest.raises(DecodeError, match="cannot run on workers"):
            await soon(handle)
        assert await soon(double(3)) == 6
    assert ran == []


@pytest.mark.parametrize(
    "content", [{"attempt": 0, "one": True, "items": [1]}, {"attempt": 1, "one": True, "items": []}, 3]
)
async def test_what_is_kept_of_a_stage_is_not_believed(connect: Connect, content: Any) -> None:
    async with connect():
        handle = await soon((stage(gated) | stage(double)).submit(2))
        router = get_router()
        payload = await router.codec.encode(content)
        reply = Reply(VERSION, step_id(handle.id, 0), Status.VALUE, payload, router.codec.name)
        await soon(records_of(router).add(handle.id, reply))
        with pytest.raises(DecodeError, match="cannot be read"):
            await soon(handle.step(0))
        await soon(handle.cancel())


async def test_a_pipeline_of_two_namespaces_is_not_submitted() -> None:
    async with atasks.connect("loopback:"), atasks.connect("loopback:", namespace=OTHERS):
        with pytest.raises(ValueError, match=r"and a run of .default. has those of its own namespace only"):
            await (stage(double) | stage(secret)).submit(1)


def test_a_fork_has_a_bound() -> None:
    assert fork(*[map(double)] * MAX_WAYS)
    with pytest.raises(ValueError, match=f"fork takes at most {MAX_WAYS} pipelines, not {MAX_WAYS + 1}"):
        fork(*[map(double)] * (MAX_WAYS + 1))
    with pytest.raises(ValueError, match="1 to 100000"):
        map(double, workers=10**9)
