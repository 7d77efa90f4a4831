"""A minute of random load under random faults, always the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from atasks import QueueFull
from tests.broker import Broker
from tests.faults.history import Await
from tests.faults.soak import Soak
from tests.faults.soak_resume import ResumeSoak

SEED = 2586
MINUTES = 1.0


@pytest.mark.timeout(480)
async def test_a_minute_of_random_faults_breaks_no_promise(node: Broker, tmp_path: Path) -> None:
    soak = Soak(node, tmp_path, SEED, MINUTES)
    try:
        await soak.run()
    finally:
        soak.close()
    soak.report()
    assert not soak.broken, "\n".join(soak.broken)
    endings = soak.history.errors()
    assert endings["value"] > 100
    assert len(soak.faults) >= 4
    assert sum(soak.faults.values()) >= 5


@pytest.mark.timeout(480)
async def test_half_a_minute_of_random_faults_repeats_no_step_that_was_safe(node: Broker, tmp_path: Path) -> None:
    soak = ResumeSoak(node, tmp_path, SEED, MINUTES / 2)
    try:
        await soak.run()
    finally:
        soak.close()
    soak.report()
    assert not soak.broken, "\n".join(soak.broken)
    assert soak.trees["value"] > 10
    assert sum(soak.faults.values()) >= 3


def test_what_is_left_behind_is_found(node: Broker, tmp_path: Path) -> None:
    soak = Soak(node, tmp_path, SEED, MINUTES)
    names = [f"{soak.prefix}.{kind}.left" for kind in ("r", "c", "l", "q")]
    with node.channel() as channel:
        for name in names:
            channel.queue_declare(name)
        assert list(soak.leaks()) == [
            "0 reply queues are consumed by 1 clients",
            "1 reply queues are left",
            "1 control queues are left by 0 workers",
            f"queues of other kinds are left: ['{names[2]}']",
        ]
        for name in names:
            channel.queue_delete(name)
    assert list(soak.leaks()) == ["0 reply queues are consumed by 1 clients"]
    with (tmp_path / "file").open("w"):
        soak.close()
    assert soak.broken == ["1 descriptors are left"]


def test_an_ending_that_nothing_explains_is_found(node: Broker, tmp_path: Path) -> None:
    soak = Soak(node, tmp_path, SEED, MINUTES)
    soak.history.made["k"] = "at_least_once"
    soak.history.awaits.append(Await("k", "at_least_once", None, QueueFull("full")))
    soak.check()
    soak.close()
    (breach,) = soak.broken
    assert "endings that nothing explains: {'QueueFull'}" in breach


async def test_a_message_that_stays_in_a_work_queue_is_found(
    node: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.soak.PATIENCE", 0.5)
    soak = Soak(node, tmp_path, SEED, MINUTES)
    with node.channel() as channel:
        channel.queue_declare(f"{soak.prefix}.q.default.default")
        channel.confirm_delivery()
        channel.basic_publish("", f"{soak.prefix}.q.default.default", b"left")
        await soak.quiet()
        channel.queue_delete(f"{soak.prefix}.q.default.default")
    soak.close()
    (breach,) = soak.broken
    assert "still not: every work queue is empty" in breach
