"""`make fuzz SECONDS=60`: hostile bytes for every decoder, a live worker over RabbitMQ, and a live hub."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.broker import running
from tests.fuzz import decoders
from tests.fuzz.live import Outcome, over_a_hub, over_amqp

MOST_SECONDS: Final = 1.0
"""The 99th percentile of good calls beside hostile messages."""
MOST_GROWTH: Final = 64 * 2**20
"""Bytes by which a worker may grow meanwhile."""
MESSAGES: Final = 100_000


def faults(outcome: Outcome, is_link_kept: bool) -> list[str]:
    """The faults of a live run."""
    found = outcome.wrong[:20]
    if outcome.p99 > MOST_SECONDS:
        found.append(f"p99 of good calls: {outcome.p99:.2f} s")
    if outcome.grown > MOST_GROWTH:
        found.append(f"the worker grew by {outcome.grown / 2**20:.0f} MiB")
    if is_link_kept and outcome.epoch != 1:
        found.append(f"the worker has had {outcome.epoch} connections")
    if not outcome.good:
        found.append("no good call was made")
    return found


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for the whole; default: 60")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=MESSAGES, help="at most, over RabbitMQ and around a hub")
    given = parser.parse_args()
    logging.disable(logging.ERROR)  # callers log what they could not read
    wrong: list[str] = []
    each = given.seconds / 4 / len(decoders.DECODERS)
    for name in decoders.DECODERS:
        found = decoders.run(name, given.seed, sys.maxsize, each)
        print(f"{name}: {found.inputs} inputs, {found.refused} refused, {len(found.faults)} faults", flush=True)
        wrong += found.faults
    for sealed in (False, True):
        with running() as broker, tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            attack = over_amqp(
                broker.url, given.seed, given.messages, given.seconds / 4, Path(folder), sealed=sealed
            )
            outcome = asyncio.run(attack)
        print(f"over RabbitMQ{', with keys' if sealed else ''}: {outcome.line()}", flush=True)
        wrong += faults(outcome, is_link_kept=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        outcome = asyncio.run(over_a_hub(f"{folder}/hub.sock", given.seed, given.messages, given.seconds / 4))
    print(f"around a hub: {outcome.line()}", flush=True)
    wrong += faults(outcome, is_link_kept=False)
    for line in wrong:
        print(f"FAULT {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
