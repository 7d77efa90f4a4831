"""Work in the background, in seven steps.

    atasks run scenarios/background.py                    all in this process: no broker needed
    atasks run scenarios/background.py --mode server      or with RabbitMQ: in one terminal or in several,
    atasks run scenarios/background.py --mode client      and in another one

A shop takes orders, and does not keep its customers waiting: what takes time is submitted to the workers.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from itertools import pairwise
from typing import Any

import atasks
from atasks import AlreadySubmitted, CallCancelled, Limit, Retry, atask, attach, current_call, event


@atask
async def invoice(order: str) -> str:
    return f"invoice-{order}.pdf"


@atask
async def deliver(order: str) -> str:
    if current_call().try_ == 1:
        raise ConnectionError("the carrier does not answer")
    return f"order {order} is on its way"


PATIENT = Retry(on=ConnectionError, attempts=3, wait=0.1, jitter=0.0)


@atask(limit=Limit("label-printer", at_once=1))
async def label(order: str) -> tuple[float, float]:
    began = time.time()
    await asyncio.sleep(0.05)
    return began, time.time()


@atask(keep=0)
async def sweep() -> None: ...


@event
async def paid(order: str) -> None: ...


@paid.on(group="mail")
async def thank(order: str) -> None:
    print("thank you for order", order, flush=True)


async def submit_and_read() -> None:
    """The call is safe when `submit` returns. Its handle, or its id in another process, gives the result."""
    handle = await invoice.submit("17")
    print(await handle, await attach(handle.id))


async def later_or_never() -> None:
    """A delayed call begins when it is due, also if this program has ended by then; unless it is cancelled."""
    handle = await invoice.options(delay=0.3).submit("18")
    print(await handle.done(), await handle)
    handle = await invoice.options(delay=60).submit("19")
    await handle.cancel()
    try:
        await handle
    except CallCancelled:
        print("cancelled")


async def once() -> None:
    """There is one call for each key at a time. A second submission joins the first one, or raises."""
    monthly = invoice.options(unique=f"2026-11 {uuid.uuid4()}")
    first, second = await monthly.submit("20"), await monthly.submit("21")
    print(first == second, await second)
    try:
        await monthly.options(on_conflict="error").submit("22")
    except AlreadySubmitted as error:
        print(type(error).__name__)


async def again() -> None:
    """A call that fails is tried again by itself. Its handle runs a call once more whose last try has failed."""
    print(await (await deliver.options(retry=PATIENT).submit("23")))
    handle = await deliver.submit("24")
    try:
        await handle
    except ConnectionError as error:  # its worker has logged it
        print(error)
    await handle.retry()
    print(await handle)


async def one_at_a_time() -> None:
    """A limit holds over all workers. Calls that wait for it keep no worker from other calls."""
    labels = sorted(await asyncio.gather(*(label(f"{order}") for order in range(25, 28))))
    print(all(before[1] <= after[0] for before, after in pairwise(labels)))


async def again_and_again() -> None:
    """Workers keep the times of a schedule: each of its ticks is one call."""
    name = f"sweep-{uuid.uuid4()}"
    await atasks.schedule(name, sweep, every=0.2)
    for _ in range(100):
        await asyncio.sleep(0.1)
        found = {schedule.name: schedule for schedule in await atasks.schedules()}[name]
        if found.last is not None:
            print("swept")
            break
    await atasks.unschedule(name)


async def tell() -> None:
    """Publish an event without knowing who handles it: one worker of each group does."""
    await paid("28")
    await asyncio.sleep(0.2)


STEPS = (submit_and_read, later_or_never, once, again, one_at_a_time, again_and_again, tell)


async def aiomain(mode: str = "loopback", **options: Any) -> None:
    """`atasks run` calls this: in server mode too, where there is nothing to do but to serve."""
    if mode == "server":
        return
    for number, step in enumerate(STEPS, 1):
        print(f"{number}. {step.__doc__}")
        await step()
