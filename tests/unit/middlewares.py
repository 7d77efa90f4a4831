"""Atasks and middlewares that processes can import, for tests/unit/test_middleware.py."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

from atasks import Invocation, Middleware, atask, current_call

NAMESPACE: Final = "tests.unit.middlewares"

NAMES: Final = (
    "self",
    "name",
    "task",
    "run",
    "inside",
    "event",
    "function",
    "args",
    "kwargs",
    "router",
    "options",
)
"""Names of parameters that functions of the package have too."""

who = ContextVar[str]("tests.unit.middlewares.who", default="nobody")


class Refused(Exception):
    pass


class Around(Middleware):
    """Says in the context who calls, and adds the process to the result."""

    async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        call.headers["who"] = "somebody"
        return await proceed()

    async def run(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        if call.args == ("refuse",):
            raise Refused(call.name)
        who.set(call.headers["who"])
        if call.args == ("again",):
            await proceed()
        return [*await proceed(), os.getpid(), call.task is describe]

    def run_blocking(self, call: Invocation, proceed: Callable[[], Any]) -> Any:
        return [*proceed(), f"{call.args[0]} by {who.get()}, {os.getpid()}"]


class Unpicklable(Middleware):
    """Cannot travel to a process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    async def run(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        return await proceed()


class Passing(Middleware):
    """Sees calls at both sides, and changes nothing."""

    async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        return await proceed()

    async def run(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        return await proceed()


runs: list[str] = []


@atask(namespace=NAMESPACE, executor="process")
def describe(what: str) -> list[Any]:
    runs.append(what)
    if what == "raise":
        raise Refused("body")
    if what == "stop":
        raise StopIteration
    if what == "exit":
        raise SystemExit(3)
    call = current_call()

    async def own_loop() -> str:
        return who.get()

    return [asyncio.run(own_loop()), call.name, call.queue, len(runs), os.getpid()]


@atask(namespace=NAMESPACE)
async def double(number: int) -> int:
    return 2 * number


@atask(namespace=NAMESPACE, executor="process")
def named(**kwargs: str) -> dict[str, str]:
    return kwargs
