"""The scenario of a workflow whose workers are killed does each step, and ends."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from scenarios import onboarding
from tests.docs.pages import ROOT

STEPS = {
    "account for Ada",
    "990 cents of account 17",
    "a code is drawn",
    "mail: welcome",
    "mail: receipt-17",
    "mail: how do you like it?",
}


def test_each_step_is_done_whoever_dies() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scenarios.onboarding", "--kills", "2", "--seed", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    shown = [re.sub(r"^\[\d+\] ", "", line) for line in done.stdout.splitlines()]
    killed = [line for line in shown if line.endswith("is killed")]
    assert set(shown) >= STEPS
    assert len([line for line in shown if line.startswith("mail: your code")]) >= 1
    assert shown[-1] == "Ada has account 17; receipt-17"
    # A worker may be killed between the line of a step and its reply, which is a thousandth of its time.
    assert len(shown) - len(killed) - 1 <= len(STEPS) + 1 + len(killed)


async def test_a_worker_is_killed_at_a_random_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    async def who() -> int:
        return 7

    monkeypatch.setattr(onboarding, "who", who)
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(pid))
    await onboarding.accidents(random.Random(3), 2)
    assert killed == [7, 7]
