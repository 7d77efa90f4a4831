"""Codecs, transports and routers of the user's own, and the rest of the public surface, to a type checker.
Checked by `make lint`; never run."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnusedFunction=false

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, assert_type

import atasks
from atasks import Codec, CurrentCall, Router, Transport, Worker, carry, connect, current_call, serve

trace: ContextVar[str] = ContextVar("trace")


class Text(Codec):
    async def encode(self, obj: Any) -> bytes:
        return str(obj).encode()

    async def decode(self, content: bytes) -> Any:
        return content.decode()


class Postman(Transport):
    async def connect(self) -> None: ...

    async def disconnect(self) -> None: ...

    async def send_request(self, name: str, content: bytes) -> bytes:
        assert self.callback is not None
        return await self.callback(name, content)


class Watching(Router):
    extra_options: ClassVar[tuple[str, ...]] = ("label",)

    async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await super().send_request(name, *args, **kwargs)


class Pool:
    pass


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Pool, None]:
    yield Pool()


async def connecting() -> None:
    async with connect("loopback:") as transport:
        assert_type(transport, Transport)
    async with connect(namespace="other", prefix="mine"):
        pass
    async with serve("loopback:", lifespan=lifespan, concurrency=5, queues=["a"], grace=1) as worker:
        assert_type(worker, Worker)
        await worker.drain(1)
    async with serve("loopback:", lifespan=lifespan()):
        pass
    await Watching().activate(Postman(), concurrency=3)
    await atasks.get_router("other").deactivate()


def calls() -> None:
    call = current_call()
    assert_type(call, CurrentCall)
    assert_type(call.id, str | None)
    assert_type(call.attempt, int | None)
    assert_type(call.deadline, float | None)
    assert_type(carry(trace), ContextVar[str])


def registered() -> None:
    assert_type(atasks.get_codec(), Codec)
    assert_type(atasks.get_transport("other"), Transport | None)
    assert_type(atasks.get_router(), Router)


async def errors() -> None:
    try:
        await atasks.get_router().send_request("name")
    except atasks.WorkerLost as error:
        assert_type(error.attempts, int)
    except atasks.RemoteError as error:
        assert_type((error.type_name, error.message, error.traceback), tuple[str, str, str])
    except TimeoutError:
        raise
