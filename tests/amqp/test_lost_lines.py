"""Lost calls are said and counted once, whoever finds out."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import pytest

import atasks
from atasks import WorkerLost
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport


@pytest.fixture
def watched(prefix: str, amqp_url: str, amqp_leaks: None) -> Site:
    return Site(lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix))


def die_at(gate: str) -> None:
    """End this process as soon as the file is there."""
    Path(f"{gate}.begun").touch()
    while not Path(gate).exists():
        time.sleep(0.005)
    os._exit(1)


def lost_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if getattr(record, "status", "") == "worker_lost"]


def counted(namespace: str) -> int:
    return sum(
        task.endings.get("worker_lost", 0)
        for worker in atasks.tracking.snapshot().workers
        if worker.namespace == namespace
        for task in worker.tasks
    )


async def test_a_worker_that_was_cut_off_has_said_it_before(
    watched: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="atasks.call")
    site, gate = watched, tmp_path / "gate"
    die = site.atask(executor="process", max_attempts=1)(die_at)
    async with site.open():
        call = asyncio.ensure_future(die(str(gate)))
        await until(lambda: Path(f"{gate}.begun").exists())
        await site.serve()  # who gets the message when the first one is cut off, and asks it
        first = site.worker.transport
        assert isinstance(first, AMQPTransport)
        assert first.session.link is not None
        await first.session.link.close()
        gate.touch()
        with pytest.raises(WorkerLost):
            await soon(call)
        await until(lambda: not any(worker.held for worker in site.workers))
        await asyncio.sleep(1)
        assert len(lost_lines(caplog)) == 1, lost_lines(caplog)
        assert counted(site.namespace) == 1
