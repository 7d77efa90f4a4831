"""Django, set up in this process for a namespace that no other test uses, with a database in a file."""

from __future__ import annotations

import atexit
import tempfile
import threading
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
atexit.register(directory.cleanup)
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
        },
        "short": {
            "BACKEND": "atasks.contrib.django.backend.AtasksBackend",
            "OPTIONS": {"NAMESPACE": NAMESPACE, "timeout": 0.2},
        },
    },
    TIME_ZONE="UTC",
    USE_TZ=True,
)
django.setup()

opened: list[object] = []
"""Every connection to the database that was made, as a wrapper of Django's."""


class Naps:
    """A function for the database that takes long."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def __call__(self, seconds: float) -> int:
        self.begun += 1
        time.sleep(seconds)
        self.ended += 1
        return 1


naps = Naps()
meetings: dict[int, threading.Barrier] = {}


def meet(count: int) -> int:
    """Return when so many queries are in here at once."""
    meetings.setdefault(count, threading.Barrier(count)).wait(60)
    return 1


@receiver(connection_created)
def _created(connection: object, **more: object) -> None:
    opened.append(connection)
    connection.connection.create_function("nap", 1, naps)  # type: ignore[attr-defined]
    connection.connection.create_function("meet", 1, meet)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def database() -> Iterator[None]:
    """Empty tables, and no connection that stays open."""
    if not connections["default"].introspection.table_names():
        call_command("migrate", run_syncdb=True, verbosity=0)
    call_command("flush", interactive=False, verbosity=0)
    connections.close_all()
    opened.clear()
    meetings.clear()
    naps.begun = naps.ended = 0
    yield
    lazy = get_router(NAMESPACE).lazy
    assert isinstance(lazy, LazyConnection)
    lazy.close()
    connections.close_all()
    wait_until(lambda: not still_open(), "connections are closed")


def still_open() -> list[object]:
    """Return the connections that were opened and not closed."""
    return [connection for connection in opened if connection.connection is not None]  # type: ignore[attr-defined]
