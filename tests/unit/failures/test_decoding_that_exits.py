"""Payloads whose decoding raises what ends programs or tasks: a DecodeError at either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import atasks
from atasks import CloudpickleCodec, Codec, DecodeError, PickleCodec, RemoteError, atask


def leave() -> None:
    raise SystemExit(3)


def cancel() -> None:
    raise asyncio.CancelledError


def close() -> None:
    raise GeneratorExit


class Exits:
    def __init__(self, how: Any) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return self.how, ()


class Failing(Exception):
    pass


@pytest.mark.parametrize("how", [leave, cancel, close])
@pytest.mark.parametrize("kind", [CloudpickleCodec, PickleCodec])
async def test_at_either_side(namespace: str, kind: type[Codec], how: Any) -> None:
    kind(namespace)

    @atask(namespace=namespace)
    async def take(value: Any) -> None: ...

    @atask(namespace=namespace, executor="thread")
    def take_in_a_thread(value: Any) -> None: ...

    @atask(namespace=namespace)
    async def give() -> Any:
        return Exits(how)

    @atask(namespace=namespace)
    async def stream() -> AsyncIterator[Any]:
        yield Exits(how)

    @atask(namespace=namespace)
    async def fail() -> None:
        error = Failing("text")
        error.exits = Exits(how)  # type: ignore[attr-defined]
        raise error

    async with atasks.connect("loopback:", namespace=namespace):
        for task in (take, take_in_a_thread):
            with pytest.raises(DecodeError, match="the arguments of"):
                await task(Exits(how))
        with pytest.raises(DecodeError, match="the result of"):
            await give()
        with pytest.raises(DecodeError, match="an item of"):
            await anext(stream())
        with pytest.raises(RemoteError, match="Failing: text"):
            await fail()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_a_true_cancellation_goes_through(namespace: str) -> None:
    started = asyncio.Event()

    class Slow(CloudpickleCodec):
        async def decode(self, content: bytes) -> Any:
            started.set()
            await asyncio.Event().wait()

    Slow(namespace)

    @atask(namespace=namespace)
    async def take(value: Any) -> None: ...

    async with atasks.connect("loopback:", namespace=namespace):
        task = asyncio.create_task(take(1))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
