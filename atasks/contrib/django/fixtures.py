"""Fixtures for pytest: `pytest_plugins = ["atasks.contrib.django.fixtures"]` in a conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atasks.contrib.django.testing import calls_in_test

__all__ = ["django_atasks"]


@pytest.fixture
def django_atasks() -> Iterator[None]:
    """Run calls in the test's own thread and database connection: see `calls_in_test`."""
    with calls_in_test():
        yield
