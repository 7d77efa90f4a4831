"""A workflow that outlives its workers: a customer joins a shop, while somebody kills the workers at random.

    python -m scenarios.onboarding                on three worker processes of this machine: no broker needed
    python -m scenarios.onboarding --kills 8      with more accidents; --seed N repeats their moments

Each line that is printed is a step, with the process that does it. `onboard` begins again at another worker each
time that its own one dies, and no step that has ended is done again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time

import atasks
from atasks import atask, current_call

STEP = 0.1
"""Seconds that a step takes."""


def show(text: str) -> None:
    """Print a line, at once: the process may not live long. In one piece: several processes print."""
    print(f"[{os.getpid()}] {text}\n", end="", flush=True)


@atask(max_attempts=20)
async def create_account(name: str) -> int:
    await asyncio.sleep(STEP)
    show(f"account for {name}")
    return 17


@atask(max_attempts=20)
async def charge(account: int, cents: int, key: str) -> str:
    """The key stays the same if this is tried again, so the bank can tell."""
    await asyncio.sleep(STEP)
    show(f"{cents} cents of account {account}")
    return f"receipt-{account}"


@atask(max_attempts=20)
async def send_mail(account: int, subject: str) -> None:
    await asyncio.sleep(STEP)
    show(f"mail: {subject}")


def pick_code() -> str:
    show("a code is drawn")
    return f"{random.randrange(10**6):06}"


@atask(resume=True, max_attempts=50)
async def onboard(name: str) -> str:
    """Read from top to bottom, as if nothing could go wrong."""
    account = await create_account(name)
    receipt = await charge(account, 990, current_call().key or "")
    code = await atasks.once(pick_code)
    await asyncio.gather(*(send_mail(account, subject) for subject in ("welcome", f"your code {code}", receipt)))
    await atasks.sleep(1)
    await send_mail(account, "how do you like it?")
    return f"{name} has account {account}; {receipt}"


@atask
async def who() -> int:
    """The process that this runs in."""
    return os.getpid()


async def accidents(dice: random.Random, kills: int) -> None:
    """Kill so many worker processes, at random moments."""
    for _ in range(kills):
        await asyncio.sleep(dice.uniform(0.05, 0.5))
        pid = dice.choice(await asyncio.gather(*(who() for _ in range(6))))
        show(f"process {pid} is killed")
        os.kill(pid, signal.SIGKILL)


async def main(kills: int, seed: int) -> None:
    began = time.perf_counter()
    async with atasks.local(3, concurrency=2):
        trouble = asyncio.create_task(accidents(random.Random(seed), kills))
        print(await onboard("Ada"))
        trouble.cancel()
    print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A workflow whose workers are killed at random.")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.kills, arguments.seed))
