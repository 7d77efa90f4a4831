"""Mistakes that a type checker must report. Each such line says so, and both tools report one that is in order.
Checked by `make lint`; never run.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnusedFunction=false, reportUnusedCoroutine=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import AsyncIterator

import atasks
from atasks import ATask, atask, event


@atask
async def add(a: int, b: int = 0) -> int:
    return a + b


@atask(timeout=5)
async def named(*, name: str) -> str:
    return name


@atask
def value(n: int) -> str:
    return str(n)


@atask
async def numbers(n: int) -> AsyncIterator[int]:
    yield n


async def arguments() -> None:
    await add()  # type: ignore[call-arg]
    await add("1")  # type: ignore[arg-type]
    await add(1, 2, 3)  # type: ignore[call-arg]
    await add(1, c=2)  # type: ignore[call-arg]
    await add(1, b="2")  # type: ignore[arg-type]
    await named("positional")  # type: ignore[call-arg]
    await named(name=1)  # type: ignore[arg-type]
    await value("1")  # type: ignore[arg-type]
    await add.options(timeout=1)("1")  # type: ignore[arg-type]
    await add.local("1")  # type: ignore[arg-type]


async def streams() -> None:
    numbers("1")  # type: ignore[arg-type]
    await numbers(1)  # type: ignore[misc]
    task: ATask[[int], int] = numbers  # type: ignore[assignment]
    print(task)
    async for number in numbers(1):
        text: str = number  # type: ignore[assignment]
        print(text)


async def results() -> None:
    text: str = await add(1)  # type: ignore[assignment]
    number: int = add(1)  # type: ignore[assignment]
    print(text, number)
    task: ATask[[str], int] = add  # type: ignore[assignment]
    print(task)


def synchronous_callers() -> None:
    add.sync("1")  # type: ignore[arg-type]
    text: str = add.sync(1)  # type: ignore[assignment]
    print(text)


def options() -> None:
    add.options(timeot=1)  # type: ignore[call-arg]
    add.options(timeout="1")  # type: ignore[arg-type]
    add.options(delivery="exactly_once")  # type: ignore[arg-type]
    add.options(orphan="keep")  # type: ignore[arg-type]
    add.options(name="other")  # type: ignore[call-arg]
    add.options(executor="thread")  # type: ignore[call-arg]
    add.delay(1, 2)  # type: ignore[attr-defined]
    add.name.missing  # type: ignore[attr-defined]  # noqa: B018


def decorations() -> None:
    atask(timeot=1)  # type: ignore[call-overload]
    atask(executor="fork")  # type: ignore[call-overload]
    atask(5)  # type: ignore[call-overload]
    atask(name=5)  # type: ignore[call-overload]
    atask(add.local, timeout="1")  # type: ignore[call-overload]


async def connections() -> None:
    atasks.connect("amqp://localhost/", prefx="shop")  # type: ignore[call-arg]
    atasks.connect("amqp://localhost/", queue_type="fast")  # type: ignore[arg-type]
    atasks.serve("amqp://localhost/", concurency=3)  # type: ignore[call-arg]
    atasks.serve("amqp://localhost/", timeout="5")  # type: ignore[arg-type]
    atasks.local(2, concurrency="1")  # type: ignore[arg-type]
    atasks.connect_sync("loopback:", prefx="shop")  # type: ignore[call-arg]


@event
async def paid(order: int) -> None: ...


async def events() -> None:
    await paid("1")  # type: ignore[arg-type]
    await paid()  # type: ignore[call-arg]
    paid.sync(1, 2)  # type: ignore[call-arg]

    @paid.on(grp="billing")  # type: ignore[call-overload, untyped-decorator]
    async def misspelt(order: int) -> None: ...

    @paid.on(group="billing")  # type: ignore[arg-type]
    async def other(order: str) -> None: ...

    print(misspelt, other)
