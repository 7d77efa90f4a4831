"""A short run with fixed seeds of what `make fuzz` does for longer."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from atasks import wire
from atasks.transport.backends.local import frames, messages
from tests.fuzz import decoders
from tests.fuzz.live import over_a_hub, over_amqp
from tests.fuzz.samples import ENVELOPES, FRAMES

SEED = 20_261
INPUTS = 400
MESSAGES = 1500
SECONDS = 60.0
REASONS = {"unsealed", "unreadable seal", "unknown key", "wrong seal", "not allowed"}
"""Those of every run with keys; others come only if their messages are read before the worker ends."""


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_decoders(name: str) -> None:
    found = decoders.run(name, SEED, INPUTS, SECONDS)
    assert (found.inputs, found.faults) == (INPUTS, [])


def test_every_kind_of_message_is_tried() -> None:
    """Those of a hub to the processes around it are not: nobody else sends them."""
    from_the_hub = {
        messages.Welcome,
        messages.Refused,
        messages.NoneServes,
        messages.Hold,
        messages.Deliver,
        messages.Pong,
        messages.Answer,
        messages.Found,
        messages.News,
        messages.JournalFound,
        messages.There,
        messages.TokenTaken,
        messages.Table,
        messages.LookAtTable,
        messages.QueueState,
    }
    tried = {type(item) for body in ENVELOPES for item in wire.decode(body)}
    assert tried == set(get_args(wire.Envelope))
    tried = {type(item) for body in FRAMES for item in frames.decode(body)}
    assert tried == set(get_args(messages.Message)) - from_the_hub


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_worker_over_rabbitmq(amqp_url: str, tmp_path: Path, sealed: bool) -> None:
    outcome = await over_amqp(amqp_url, SEED, MESSAGES, SECONDS, tmp_path, sealed=sealed)
    assert outcome.wrong == []
    assert outcome.sent >= MESSAGES
    assert outcome.good
    assert outcome.bad
    assert outcome.epoch == 1
    assert outcome.steps
    assert set(outcome.seals) >= REASONS if sealed else not outcome.seals


async def test_memory_is_measured_from_a_tenth_of_the_time_on(tmp_path: Path) -> None:
    """A run may end by its time, before a tenth of the messages is sent: all that the worker has would be
    growth."""
    outcome = await over_a_hub(str(tmp_path / "hub.sock"), SEED, 10**9, 2.0)
    assert outcome.warm > 10 * 2**20


async def test_a_hub(tmp_path: Path) -> None:
    outcome = await over_a_hub(str(tmp_path / "hub.sock"), SEED, MESSAGES, SECONDS)
    assert outcome.wrong == []
    assert outcome.sent >= MESSAGES
    assert outcome.good
