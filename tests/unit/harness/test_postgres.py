"""The database that the tests choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.base import BrokerError
from tests.brokers.postgres import Postgres, PostgresContainer, PrivatePostgres, choose, own


def must_not_be_asked() -> bool:
    raise AssertionError("there was no need to ask for a Docker engine")


def test_a_given_database_comes_first() -> None:
    given = {"ATASKS_TEST_POSTGRES_URL": "postgresql://a/b"}
    chosen = choose(None, given, lambda: Path("/bin"), must_not_be_asked)
    assert type(chosen) is Postgres
    assert chosen.url == "postgresql://a/b"
    assert not chosen.controllable


def test_an_installed_one_comes_second() -> None:
    assert isinstance(choose(None, {}, lambda: Path("/bin"), must_not_be_asked), PrivatePostgres)


def test_a_container_comes_third() -> None:
    chosen = choose(None, {"ATASKS_TEST_POSTGRES_URL": ""}, lambda: None, lambda: True)
    assert isinstance(chosen, PostgresContainer)
    assert chosen.controllable


def test_one_that_is_stopped_is_never_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATASKS_TEST_POSTGRES_URL", "postgresql://a/b")
    assert isinstance(own(None, lambda: None, lambda: True), PostgresContainer)


def test_without_any_it_says_what_to_do() -> None:
    what = r"(?s)apt-get install postgresql.*Docker.*ATASKS_TEST_POSTGRES_URL="
    with pytest.raises(BrokerError, match=what):
        choose(None, {}, lambda: None, lambda: False)
