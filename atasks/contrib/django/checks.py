"""The system checks: `manage.py check` says what is wrong with ATASKS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core import checks

from atasks.contrib.django.settings import Namespace, read

__all__ = ["check_settings"]


def check_settings(**more: Any) -> list[checks.CheckMessage]:
    """Return an error for each fault of ATASKS, and warnings of what is fit for development alone."""
    return [message for namespace in read() for message in _messages(namespace)]


def _messages(namespace: Namespace) -> Iterator[checks.CheckMessage]:
    for problem in namespace.problems:
        yield checks.Error(problem.message, hint=problem.hint or None, id=f"atasks.E{problem.number:03}")
    if namespace.problems:
        return
    if namespace.scheme == "loopback" and not settings.DEBUG:
        yield checks.Warning(
            f"ATASKS[{namespace.name!r}] has no URL: calls run in the process that makes them",
            hint='Give the URL of a broker, as in "amqp://user:password@host/", or set $ATASKS_URL.',
            id="atasks.W001",
        )
