"""The setting ATASKS: what is made of it, and what the system checks say of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

import atasks
from atasks.contrib.django.checks import check_settings
from atasks.contrib.django.settings import read
from tests.django.conftest import NAMESPACE
from tests.django.project import SHOP
from tests.django.shop import tasks
from tests.docs.pages import PAGES

URL = "amqp://guest:guest@localhost/"


def check(**keys: Any) -> list[tuple[str, str, str | None]]:
    """The messages of the system checks for a namespace with these keys."""
    with override_settings(ATASKS={NAMESPACE: keys}):
        return [(message.id, message.msg, message.hint) for message in check_settings()]


def test_nothing_is_connected_before_a_call() -> None:
    lazy = atasks.get_router(NAMESPACE).lazy
    assert lazy is not None
    assert lazy.transport is None
    tasks.names.sync()
    assert lazy.transport is not None


def test_the_modules_of_the_apps_are_imported() -> None:
    names = atasks.get_router(NAMESPACE).registry.names()
    assert "tests.django.shop.tasks.take" in names


def test_everything_that_can_be_said() -> None:
    keys = {
        "URL": [URL, "amqp://guest:guest@other/"],
        "PREFIX": "shop",
        "QUEUE": "orders",
        "CODEC": "msgpack",
        "CONCURRENCY": 20,
        "THREADS": 5,
        "RECORDS": 60.0,
        "OPTIONS": {"queue_type": "quorum"},
    }
    assert check(**keys) == []
    with override_settings(ATASKS={NAMESPACE: keys}):
        router = atasks.get_router(NAMESPACE)
        assert isinstance(router.codec, atasks.MsgpackCodec)
        assert router.lazy is not None
        assert router.lazy.options == {
            "queue_type": "quorum",
            "prefix": "shop",
            "queue": "orders",
            "keep_runs": 60.0,
        }
        (namespace,) = read()
        assert namespace.problems == ()
        assert namespace.sizes == {"concurrency": 20, "threads": 5}
    atasks.CloudpickleCodec(NAMESPACE)
    assert tasks.names.sync() == [], "what was overridden counts again"


def test_records_may_have_a_database_of_their_own() -> None:
    with override_settings(ATASKS={NAMESPACE: {"URL": URL, "RECORDS": "postgresql://localhost/shop"}}):
        (namespace,) = read()
        assert namespace.options == {"records": "postgresql://localhost/shop"}
        assert namespace.problems == ()


def test_the_environment_names_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATASKS_URL", URL)
    assert check() == []
    monkeypatch.setattr(settings, "ATASKS", None)
    (namespace,) = read()
    assert (namespace.name, namespace.url) == ("default", URL)


def test_loopback_is_for_development() -> None:
    ((id, message, hint),) = check()
    assert id == "atasks.W001"
    assert "calls run in the process that makes them" in message
    assert hint is not None
    with override_settings(DEBUG=True):
        assert check() == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"URI": URL}, "unknown key 'URI'|Did you mean 'URL'"),
        ({"url": URL}, "unknown key 'url'|Did you mean 'URL'"),
        ({"BROKER": URL}, "unknown key 'BROKER'|Known are URL, PREFIX"),
        ({"URL": "redis://localhost/"}, "names no transport"),
        ({"URL": 5}, "a URL is a string, not int"),
        ({"URL": URL, "OPTIONS": {"prefxi": "a"}}, "did you mean prefix"),
        ({"URL": URL, "OPTIONS": ["prefix"]}, "a dictionary, not list"),
        ({"URL": URL, "OPTIONS": {"prefix": "a"}, "PREFIX": "b"}, "'prefix' in OPTIONS|Leave one of them out"),
        ({"URL": URL, "CODEC": "json"}, "there is no codec 'json'|cloudpickle, pickle, msgpack"),
        ({"URL": URL, "CODEC": "shop.codecs.Missing"}, "No module named 'shop'"),
        ({"URL": URL, "CODEC": 5}, "a string, not int"),
        ({"URL": URL, "CONCURRENCY": 0}, "at least 1"),
        ({"URL": URL, "THREADS": "5"}, "a whole number, not '5'"),
        ({"URL": URL, "RECORDS": "a day"}, "'a day' is no URL"),
        ({"URL": URL, "RECORDS": -1}, "keep_runs=-1"),
        ({"URL": URL, "RECORDS": {}}, "a number of seconds or a URL, not {}"),
        ({"URL": URL, "RECORDS": "mysql://localhost/x"}, "mysql"),
        ({"URL": URL, "QUEUE": "a b"}, "QUEUE"),
    ],
)
def test_what_is_wrong_is_said_by_the_checks_and_by_calls(keys: dict[str, Any], words: str) -> None:
    ((id, message, hint),) = check(**keys)
    assert id.startswith("atasks.E00")
    for word in words.split("|"):
        assert word in f"{message} {hint}"
    with override_settings(ATASKS={NAMESPACE: keys}):
        with pytest.raises(SystemCheckError, match="atasks"):
            call_command("check")
        with pytest.raises(ImproperlyConfigured, match="ATASKS"):
            tasks.names.sync()
        with pytest.raises(ImproperlyConfigured, match="ATASKS"):
            asyncio.run(_names())
    assert tasks.names.sync() == []


async def _names() -> list[str]:
    return await tasks.names()


@pytest.mark.parametrize("given", [["default"], "amqp://localhost/", {"default": URL}, {5: {}}, {"a b": {}}])
def test_what_is_no_dictionary_of_namespaces(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ATASKS", given)
    messages = check_settings()
    assert [message.id[:9] for message in messages] == ["atasks.E0"]


def test_a_namespace_that_is_taken_out_connects_no_more() -> None:
    with override_settings(ATASKS={}), pytest.raises(atasks.NotConnected):
        tasks.names.sync()
    wrong, another = override_settings(ATASKS={NAMESPACE: {"URL": 5}}), override_settings(ATASKS={"a b": {}})
    with wrong, another, pytest.raises(atasks.NotConnected):
        tasks.names.sync()
    assert tasks.names.sync() == []


def test_the_page_shows_the_files_of_the_scenario() -> None:
    shown = {block.file: block.text for page in PAGES if page.name == "docs/django.md" for block in page.blocks}
    files = [path for path in SHOP.rglob("*.py") if path.stat().st_size and "migrations" not in path.parts]
    assert len(files) == 8
    for path in files:
        name = path.relative_to(SHOP).as_posix()
        assert shown[name] == path.read_text(), name
