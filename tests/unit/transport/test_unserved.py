"""The command that errors and warnings name where no worker serves."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from atasks import commands
from atasks.commands import started_by
from atasks.transport.unserved import WARN_SECONDS, Unserved, no_worker


class _Waiting:
    since = 1.0


@pytest.mark.parametrize("own", [None, "python manage.py run_atask"])
def test_the_command_that_starts_a_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, own: str | None
) -> None:
    monkeypatch.setattr(commands, "_own", None)
    if own is not None:
        started_by(own)
    named = own or "atasks run MODULE --mode server"
    assert str(no_worker("mail")) == f"nothing serves queue 'mail': start a worker ({named})"
    waiting: list[Any] = [_Waiting()]
    Unserved(logging.getLogger("atasks.tests")).see("mail", waiting, 1.0 + WARN_SECONDS)
    assert caplog.messages == [
        (
            "nothing serves queue 'mail': 1 call has waited for a worker, now for 5 s; start one for it "
            f"({named}), or give calls a timeout"
        )
    ]
