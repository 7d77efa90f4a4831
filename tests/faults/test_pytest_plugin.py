"""The plugin for pytest with workers over RabbitMQ: they take some time to start and to drain."""

from __future__ import annotations

import pytest

from tests.unit.programs.test_pytest_plugin import WORKERS, run_tests

pytest_plugins = ["pytester"]


def test_worker_processes_over_amqp(pytester: pytest.Pytester, amqp_url: str) -> None:
    run_tests(pytester, WORKERS, f"--atasks-url={amqp_url}").assert_outcomes(passed=3)


def test_worker_processes_that_cannot_serve(pytester: pytest.Pytester) -> None:
    result = run_tests(pytester, WORKERS, "--atasks-url=amqp://guest:guest@127.0.0.1:1/")
    result.stdout.fnmatch_lines(["*ConnectFailed*127.0.0.1:1*"])
    result.assert_outcomes(passed=1, errors=2)
