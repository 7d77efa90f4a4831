"""Work in the background, in five steps.

    atasks run scenarios/background.py                    all in this process: no broker needed
    atasks run scenarios/background.py --mode server      or with RabbitMQ: in one terminal or in several,
    atasks run scenarios/background.py --mode client      and in another one

A shop takes orders, and does not keep its customers waiting: what takes time is submitted to the workers.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from atasks import AlreadySubmitted, CallCancelled, UnknownRun, atask, attach


@atask
async def invoice(order: str) -> str:
    await asyncio.sleep(0.1)  # it takes its time
    return f"invoice-{order}.pdf"


@atask(keep=0)
async def warm_up(page: str) -> None:
    """Nobody wants the result: none is kept."""


async def submit_and_read() -> None:
    """The call is safe when `submit` returns. Its handle, or its id in another process, gives the result."""
    handle = await invoice.submit("17")
    print("submitted:", not await handle.done())
    print(await handle)
    print("by its id:", await attach(handle.id))


async def keep_nothing() -> None:
    """A call whose result nobody wants costs the broker nothing once it has run."""
    handle = await warm_up.submit("/")
    try:
        await handle
    except UnknownRun:
        print("nothing is kept")


async def later() -> None:
    """A delayed call begins when it is due; over RabbitMQ also if this program has ended by then."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    handle = await invoice.options(delay=0.5).submit("18")
    print(await handle, "not before its time:", loop.time() - began >= 0.5)


async def once() -> None:
    """There is one call for each key at a time. Who comes second joins the first one, or is told."""
    monthly = invoice.options(unique=f"2026-11 {uuid.uuid4()}")
    first, second = await monthly.submit("19"), await monthly.submit("20")
    print("the same:", first == second, await second)
    try:
        await monthly.options(on_conflict="error").submit("21")
    except AlreadySubmitted as error:
        print(type(error).__name__)


async def change_of_mind() -> None:
    """A call that is cancelled does not begin, or ends: whoever awaits it is told."""
    handle = await invoice.options(delay=60).submit("22")
    await handle.cancel()
    try:
        await handle
    except CallCancelled:
        print("cancelled")


STEPS = (submit_and_read, keep_nothing, later, once, change_of_mind)


async def aiomain(mode: str = "loopback", **options: Any) -> None:
    """`atasks run` calls this: in server mode too, where there is nothing to do but to serve."""
    if mode == "server":
        return
    for number, step in enumerate(STEPS, 1):
        print(f"{number}. {step.__doc__}")
        await step()
