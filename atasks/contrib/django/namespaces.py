"""Router, codec, middleware and connection of each namespace of the setting ATASKS."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from atasks import connect_lazily, use
from atasks.contrib.django.middleware import DjangoMiddleware
from atasks.contrib.django.settings import Namespace, read
from atasks.lazy import LazyConnection
from atasks.namespaces import namespace_item, namespaces
from atasks.router import get_router

__all__ = ["make"]

T = TypeVar("T")


def make() -> None:
    """Make router, codec, middleware and connection of each namespace, or what refuses its calls."""
    found = read()
    for name in _made - {namespace.name for namespace in found}:
        _forget(name)
    for namespace in found:
        if namespace.problems:
            _refuse(namespace)
        else:
            _make(namespace)


_made: set[str] = set()
"""Namespaces whose calls connect by themselves, or are refused."""


def _forget(name: str) -> None:
    """Let calls of a namespace that is in ATASKS no more connect no more."""
    _made.discard(name)
    former = namespace_item(name).lazy
    namespaces.register(name, lazy=None)
    if former is not None:
        former.close()


def _make(namespace: Namespace) -> None:
    name = namespace.name
    _made.add(name)
    get_router(name)
    namespace.make_codec()
    known = namespace_item(name)
    former = known.lazy
    connect_lazily(namespace.url, namespace=name, **namespace.connect_options)
    if former is not None:
        former.close()
    if known.after_commit is None:
        namespaces.register(name, after_commit=transaction.on_commit)
        use(DjangoMiddleware(), name)


def _refuse(namespace: Namespace) -> None:
    """Have the calls of a namespace whose settings are wrong say so: not every server runs the system checks."""
    try:
        get_router(namespace.name)
    except (TypeError, ValueError):  # no atask can have such a namespace
        return
    _made.add(namespace.name)
    text = "; ".join(problem.message for problem in namespace.problems)
    namespaces.register(namespace.name, lazy=_Refusing(namespace.name, text))


class _Refusing(LazyConnection):
    """Raises ImproperlyConfigured in the place of every call."""

    def __init__(self, namespace: str, text: str) -> None:
        super().__init__("loopback:", namespace, {})
        self._text = text

    async def forward(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        raise ImproperlyConfigured(self._text)

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        raise ImproperlyConfigured(self._text)

    async def within(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        raise ImproperlyConfigured(self._text)

    def close(self) -> None:
        pass
