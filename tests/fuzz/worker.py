"""A worker that is sent hostile messages: `python -m tests.fuzz.worker URL PREFIX`. It tells how it fared."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from typing import Final

import atasks
from atasks import atask
from tests.fuzz.samples import NAMESPACE

atasks.MsgpackCodec(NAMESPACE)

KEEP_BYTES: Final = 4 * 2**20
"""What a hub may keep of runs: what hostile frames submit fills it, up to there."""


@atask(namespace=NAMESPACE, name="echo")
async def echo(value: int) -> int:
    return value


@atask(namespace=NAMESPACE, name="in_a_thread", executor="thread")
def in_a_thread(value: int) -> int:
    return value


@atask(namespace=NAMESPACE, name="numbers")
async def numbers(value: int) -> AsyncIterator[int]:
    for number in range(value):
        yield number


async def main(url: str, prefix: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with atasks.serve(
        url, namespace=NAMESPACE, prefix=prefix, concurrency=50, threads=8, grace=5, keep_bytes=KEEP_BYTES
    ) as worker:
        print(json.dumps({"id": worker.id}), flush=True)
        await stop.wait()
        print(
            json.dumps({"bad": worker.bad_messages, "epoch": getattr(worker.transport, "_epoch", 1)}), flush=True
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    asyncio.run(main(*sys.argv[1:]))
