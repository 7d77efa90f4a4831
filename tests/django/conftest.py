"""Django, set up in this process for a namespace that no other test uses, with a database in a file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.db.backends.signals import connection_created
from django.dispatch import receiver

from atasks import LazyConnection, get_router
from atasks.contrib.django.fixtures import django_atasks
from tests.waiting import wait_until

__all__ = ["django_atasks"]

NAMESPACE = "tests.django"

directory = tempfile.TemporaryDirectory(prefix="atasks-django-")
settings.configure(
    ATASKS={NAMESPACE: {"URL": "loopback:"}},
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(directory.name, "db.sqlite3"),
            "OPTIONS": {"timeout": 20},
        }
    },
    INSTALLED_APPS=["tests.django.shop.apps.ShopConfig", "atasks.contrib.django"],
    LANGUAGE_CODE="en-us",
    LOGGING_CONFIG=None,
    SECRET_KEY="tests",
    TASKS={
        "default": {
            "BACKEND": "atasks.contrib.django.backend.AtasksBackend",
            "OPTIONS": {"NAMESPACE": NAMESPACE},
            "QUEUES": ["default", "mail"],
        }
    },
    TIME_ZONE="UTC",
    USE_TZ=True,
)
django.setup()

opened: list[object] = []
"""Every connection to the database that was made, as a wrapper of Django's."""


@receiver(connection_created)
def _created(connection: object, **more: object) -> None:
    opened.append(connection)
    connection.connection.create_function("nap", 1, lambda seconds: time.sleep(seconds) or 1)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def database() -> Iterator[None]:
    """Empty tables, and no connection that stays open."""
    if not connections["default"].introspection.table_names():
        call_command("migrate", run_syncdb=True, verbosity=0)
    call_command("flush", interactive=False, verbosity=0)
    connections.close_all()
    opened.clear()
    yield
    lazy = get_router(NAMESPACE).lazy
    assert isinstance(lazy, LazyConnection)
    lazy.close()
    connections.close_all()
    wait_until(lambda: not still_open(), "connections are closed")


def still_open() -> list[object]:
    """Return the connections that were opened and not closed."""
    return [connection for connection in opened if connection.connection is not None]  # type: ignore[attr-defined]
