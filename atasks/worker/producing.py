"""Running a stream: what its generator yields goes to the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from atasks import wire
from atasks.codecs.base import Codec, as_bytes, ends_here
from atasks.codecs.checked import over_limit
from atasks.codecs.culprits import unencodable
from atasks.wire import Reply, Status

if TYPE_CHECKING:
    from atasks.worker.held_call import HeldCall

__all__ = ["produce"]


async def produce(run: HeldCall, codec: Codec, generator: AsyncGenerator[Any, None]) -> Reply | None:
    """Send what the generator yields, never more than a window ahead of the consumer.

    Returns None at its end, or the reply for an item that cannot be sent. Raises what the generator raises. The
    generator is closed in any case: what its `finally` awaits is waited for.
    """
    sender = run.worker.streams.open(run, codec.name)
    limit = run.worker.transport.max_payload
    try:
        if run.call.attempt > 1 or run.call.ran:
            await sender.greet()
        async for item in generator:
            try:
                payload = as_bytes(await codec.encode(item), codec)
            except BaseException as error:
                if ends_here(error):
                    raise
                refusal = await unencodable(f"item {sender.produced} of {run.call.task}", item, codec, error)
                return _refusal(run, Status.ENCODE_ERROR, str(refusal))
            if len(payload) > limit:
                return _refusal(
                    run,
                    Status.TOO_LARGE,
                    over_limit(
                        f"item {sender.produced} of {run.call.task} has", len(payload), limit, "yield a reference"
                    ),
                )
            sender.put(payload)
            if sender.full:
                await sender.room()
            elif sender.skipping and sender.produced % sender.window == 0:
                await asyncio.sleep(0)  # lets other calls run while items are skipped
    finally:
        await generator.aclose()
    return None


def _refusal(run: HeldCall, status: int, message: str) -> Reply:
    return wire.ended(run.call.id, status, message, run.worker.id)
