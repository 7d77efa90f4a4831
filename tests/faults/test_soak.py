"""A minute of random load under random faults, always the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broker import Broker
from tests.faults.soak import Soak

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
