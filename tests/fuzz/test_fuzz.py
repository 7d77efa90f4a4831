"""A short run with fixed seeds of what `make fuzz` does for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import decoders
from tests.fuzz.live import over_a_hub, over_amqp

SEED = 20_261
INPUTS = 400
MESSAGES = 1500
SECONDS = 60.0


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_decoders(name: str) -> None:
    found = decoders.run(name, SEED, INPUTS, SECONDS)
    assert (found.inputs, found.faults) == (INPUTS, [])


async def test_a_worker_over_rabbitmq(amqp_url: str) -> None:
    outcome = await over_amqp(amqp_url, SEED, MESSAGES, SECONDS)
    assert outcome.wrong == []
    assert outcome.sent >= MESSAGES
    assert outcome.good
    assert outcome.bad
    assert outcome.epoch == 1


async def test_a_hub(tmp_path: Path) -> None:
    outcome = await over_a_hub(str(tmp_path / "hub.sock"), SEED, MESSAGES, SECONDS)
    assert outcome.wrong == []
    assert outcome.sent >= MESSAGES
    assert outcome.good
