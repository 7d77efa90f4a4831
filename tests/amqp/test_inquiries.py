"""Rounds of questions to workers, without which the await of a lost call would not end."""

# Private attributes: `OverdueCalls._round`: an error that nobody has thought of comes from within.

from __future__ import annotations

import logging

import pytest

from atasks.testing import Site, until
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from atasks.transport.backends.amqp.transport import AMQPTransport


async def test_a_round_that_fails_is_not_the_last_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0

    async def failing(self: OverdueCalls) -> bool:
        nonlocal rounds
        rounds += 1
        raise KeyError("nobody has thought of it")

    monkeypatch.setattr(OverdueCalls, "_round", failing)
    async with site.open():
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        for number in (1, 2):
            transport.calling.overdue.suspect([])
            await until(lambda number=number: rounds >= number)  # type: ignore[misc]
    assert any("the next one asks again" in record.getMessage() for record in caplog.records)
    assert all(record.levelno == logging.ERROR for record in caplog.records if record.exc_info)
