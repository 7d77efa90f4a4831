"""The benchmark of pipelines measures and says so; what it measures decides nothing here."""

from __future__ import annotations

import pytest

from benchmarks.load import BenchmarkFailed
from benchmarks.pipelines.__main__ import SYSTEMS, blocking, blocking_table, local, remote, table


def test_the_local_pipeline_is_measured() -> None:
    samples = local(SYSTEMS[:1], 2000, 2)
    assert [sample["items"] for sample in samples["atasks.pipeline"]] == [2000, 2000]
    rows = table({**samples, "another": [{"items": 1, "seconds": 1.0, "cpu": 0.5}]}).splitlines()
    assert rows[2].startswith("| atasks.pipeline | ")
    assert rows[2].endswith("| 1.0 |")
    assert "| another | 1 | " in rows[3]
    assert "| 500000.00 | " in rows[3]


def test_peers_have_environments_of_their_own_with_fixed_versions() -> None:
    for system in SYSTEMS[1:]:
        assert system.requires
        assert all("==" in requirement for requirement in system.requires)


def test_a_child_that_fails_is_no_result() -> None:
    with pytest.raises(BenchmarkFailed, match="invalid literal for int"):
        local(SYSTEMS[:1], "many", 1)  # type: ignore[arg-type]


def test_threads_are_measured_beside_the_pools() -> None:
    rows = blocking_table(blocking(SYSTEMS[:1], 1, ("threads",))).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["atasks", "pool"]
    assert all(float(cell) >= 0 for row in rows[2:] for cell in row.split("|")[2:4])


def test_remote_stages_are_measured(amqp_url: str) -> None:
    figures = remote(amqp_url, 100, 300)
    assert figures["three stages"]["items"] == 100
    assert len(figures["three stages"]["mean in flight"]) == 3
    assert figures["fan-out"]["items"] == 300
