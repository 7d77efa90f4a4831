"""A worker that is sent hostile messages: `python -m tests.fuzz.worker URL PREFIX KEYS`. It tells how it fared."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import atasks
from atasks import Limit, atask, event
from atasks.transport.backends.amqp import AMQPTransport
from tests.fuzz.samples import NAMESPACE

atasks.MsgpackCodec(NAMESPACE)

KEEP_BYTES: Final = 4 * 2**20
"""Bytes of runs that a hub may keep: hostile frames submit until it is full."""
MAX_RAISED: Final = 20


@atask(namespace=NAMESPACE, name="echo")
async def echo(value: int) -> int:
    return value


@atask(namespace=NAMESPACE, name="in_a_thread", executor="thread")
def in_a_thread(value: int) -> int:
    return value


@atask(namespace=NAMESPACE, name="limited", limit=Limit("a-limit", at_once=10, namespace=NAMESPACE))
async def limited(value: int) -> int:
    return value


@atask(namespace=NAMESPACE, name="scheduled", every=1.0, keep=0)
async def scheduled() -> None:
    """Nothing: there is a table of schedules because of it."""


@atask(namespace=NAMESPACE, name="resuming", resume=True, orphan="run")
async def resuming(value: int) -> int:
    return await echo(value)


@atask(namespace=NAMESPACE, name="numbers")
async def numbers(value: int) -> AsyncIterator[int]:
    for number in range(value):
        yield number


@event(namespace=NAMESPACE, name="happened")
async def happened(value: int) -> None: ...


@happened.on(group="counting")
async def counted(value: int) -> None:
    """Nothing: there is a queue of the group because of it."""


@happened.on()
async def noticed(value: int) -> None:
    """Nothing: there is a queue of each worker because of it."""


@atask(namespace=NAMESPACE, name="lasting", resume=True, orphan="run")
async def lasting(gate: str) -> int:
    """Make steps until this file exists; their number."""
    made = 0
    while not Path(gate).exists():
        assert await echo(made) == made
        made += 1
        await asyncio.sleep(0.2)
    return made


class Raised(logging.Handler):
    """Keeps what was logged with a traceback: an exception that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if error and len(self.found) < MAX_RAISED:
            self.found.append(f"{record.getMessage()[:200]}: {type(error).__name__}: {str(error)[:200]}")


async def main(url: str, prefix: str, keys: str) -> None:
    raised = Raised()
    logging.getLogger().addHandler(raised)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with atasks.serve(
        url,
        namespace=NAMESPACE,
        prefix=prefix,
        keys=keys,
        concurrency=50,
        threads=8,
        grace=5,
        keep_bytes=KEEP_BYTES,
    ) as worker:
        print(json.dumps({"id": worker.id}), flush=True)
        await stop.wait()
        epoch = getattr(worker.transport, "_epoch", 1)
        seals = worker.transport.session.seals if isinstance(worker.transport, AMQPTransport) else None
        refused = {} if seals is None else dict(seals.refused)
        told = {"bad": worker.bad_messages, "epoch": epoch, "raised": raised.found, "seals": refused}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    asyncio.run(main(*sys.argv[1:]))
