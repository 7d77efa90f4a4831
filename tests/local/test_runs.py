"""Runs of pipelines around a hub: what it forgets, what it holds, and who is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import DecodeError, NotConnected, UnknownRun, atask
from atasks.codecs import get_codec
from atasks.current import new_call_id
from atasks.options import TaskOptions
from atasks.pipeline import attach, bind, stage
from atasks.testing import soon, until
from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.messages import PROTOCOL, Hello, Read, Watch
from atasks.transport.records.contract import Records
from atasks.wire import VERSION, Call, Reply, Status
from tests.faults.history import History, settled
from tests.faults.submitters import chained
from tests.local.fleet import Fleet

READERS = 20


@atask
async def double(x: int) -> int:
    return x * 2


@atask
async def wait_for(gate: str, x: int) -> int:
    while not Path(gate).exists():
        await asyncio.sleep(0.02)
    return x


async def value(handle: Any) -> Any:
    return await handle


@pytest.mark.parametrize("how", ["killed", "drained"])
@pytest.mark.usefixtures("no_leaked_tasks")
async def test_a_hub_that_ends_forgets_its_runs(fleet: Fleet, tmp_path: Path, history: History, how: str) -> None:
    first = await fleet.server(grace=0)
    async with atasks.connect(fleet.url, hub=False):
        ended = await settled(chained(str(tmp_path), 1).submit([]), "a submission")
        (tmp_path / "0").touch()
        assert await settled(ended, "a run") == [0]
        (tmp_path / "0").unlink()
        running = await settled(chained(str(tmp_path), 2).submit([]), "a submission")
        awaiting = [asyncio.ensure_future(value(attach(running.id))) for _ in range(3)]
        await until(lambda: len(history.runs("stage-0")) == 2, "it runs")
        first.kill() if how == "killed" else await asyncio.to_thread(first.stop)
        asking = asyncio.ensure_future(value(attach(ended.id)))  # while there is no hub
        await fleet.server()
        for each in [*awaiting, asking, value(running), running.step(0), running.done(), running.cancel()]:
            with pytest.raises(UnknownRun, match="kept in a process that has ended"):
                await settled(each, "a run that is forgotten")
        (tmp_path / "0").touch()
        assert await settled(await settled(chained(str(tmp_path), 1).submit([]), "a submission"), "a run") == [0]


async def test_a_submission_while_the_hub_is_away_is_made_to_the_next_one(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    first = await fleet.server()
    async with atasks.connect(fleet.url, hub=False):
        first.kill()
        submitting = asyncio.ensure_future(chained(str(tmp_path), 1).submit([]))
        await fleet.server()
        assert await settled(await settled(submitting, "a submission"), "a run") == [0]


async def test_who_disconnects_is_told(host: Host, path: str) -> None:
    async with atasks.connect(f"unix://{path}", hub=False) as transport:
        handle = await soon(stage(double).submit(2))  # nobody serves: the hub keeps it
        waiting = asyncio.ensure_future(value(handle))
        await asyncio.sleep(0.1)  # it asks
        await transport.disconnect()
        with pytest.raises(NotConnected):
            await soon(waiting)


async def test_a_submission_is_safe_although_nobody_serves(host: Host, path: str) -> None:
    async with atasks.connect(f"unix://{path}", hub=False):
        handle = await soon(stage(double).submit(2))
    async with atasks.serve(f"unix://{path}", hub=False):
        assert await soon(attach(handle.id)) == 4


async def test_a_run_that_expires_before_it_begins_is_forgotten_whole(host: Host, path: str) -> None:
    async with atasks.connect(f"unix://{path}", hub=False, keep_runs=0.2):
        handle = await soon(stage(double).submit(2))
        assert len(host.hub) == 1
        await until(lambda: len(host.hub) == 0, "it expires")
        with pytest.raises(UnknownRun):
            await soon(handle)


async def test_a_submission_that_is_cancelled_leaves_nothing(host: Host, path: str) -> None:
    async with atasks.connect(f"unix://{path}", hub=False) as transport:
        assert transport.records is not None
        codec = get_codec()
        call = Call(VERSION, new_call_id(), double.name, await codec.encode(((1,), {})), codec.name)
        beginning = asyncio.create_task(transport.records.begin(call, TaskOptions()))
        await asyncio.sleep(0)  # it is sent
        beginning.cancel()
        await asyncio.wait([beginning])
        record = await soon(transport.records.read(call.id))
        assert record.ending is not None
        assert record.ending.status == Status.CANCELLED
        assert len(host.hub) == 0


async def test_namespaces_have_runs_of_their_own(host: Host, path: str) -> None:
    url = f"unix://{path}"
    async with atasks.serve(url, hub=False), atasks.connect(url, namespace="others", hub=False) as other:
        handle = await soon(stage(double).submit(2))
        assert await soon(handle) == 4
        assert other.records is not None
        with pytest.raises(UnknownRun):
            await soon(other.records.read(handle.id))


async def test_a_reader_that_does_not_read_delays_nobody(host: Host, path: str, tmp_path: Path) -> None:
    url = f"unix://{path}"
    async with atasks.serve(url, hub=False):
        handle = await soon(stage(wait_for, bind=bind(str(tmp_path / "gate"))).submit(2))
        _, writer = await asyncio.open_unix_connection(path)
        body = encode(
            [Hello(PROTOCOL, "default", 1), Watch(handle.id, True), *(Read(n, handle.id) for n in range(50_000))]
        )
        writer.write(len(body).to_bytes(4, "big") + body)
        await writer.drain()
        await until(lambda: [peer for peer in host.hub.peers if peer.unread], "it is held back")
        held = next(peer for peer in host.hub.peers if peer.unread)
        (tmp_path / "gate").touch()
        assert await soon(asyncio.gather(*(value(attach(handle.id)) for _ in range(READERS)))) == [2] * READERS
        writer.close()
        await writer.wait_closed()
        await until(lambda: held not in host.hub.peers, "it is forgotten")
        assert await soon(handle) == 2


async def test_a_reply_that_cannot_be_read_is_refused(host: Host, path: str) -> None:
    async with atasks.connect(f"unix://{path}", hub=False) as transport:
        records = transport.records
        assert isinstance(records, Records)
        handle = await soon(stage(double).submit(2))
        for bad in (Reply(VERSION, "x" * 100, Status.VALUE, b""), Reply(VERSION, f"{handle.id}.0", -1, b"")):
            with pytest.raises(DecodeError, match="refused"):
                await soon(records.add(handle.id, bad))
        assert not (await soon(records.read(handle.id))).replies
