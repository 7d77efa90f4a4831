"""Names that no message can carry are refused where they are given."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from atasks import Codec, atask, carry, event
from atasks.current import carried
from atasks.namespaces import namespaces
from atasks.router import get_router


def _decorate(name: str, namespace: str) -> None:
    async def f() -> None: ...

    atask(f, name=name, namespace=namespace)


def _register(name: str, namespace: str) -> None:
    async def f() -> None: ...

    get_router(namespace).register_atask(name, f)


def _carry(name: str, namespace: str) -> None:
    carry(ContextVar(name))


def _event(name: str, namespace: str) -> None:
    async def f() -> None: ...

    event(name=name, namespace=namespace)(f)


def _handler(name: str, namespace: str) -> None:
    async def f() -> None: ...

    event(name=f"e{len(name)}", namespace=namespace)(f).on(name=name)(f)


def _codec(name: str, namespace: str) -> None:
    class Odd(Codec):
        pass

    Odd.name = name
    Odd(namespace)


@pytest.mark.parametrize("give", [_event, _handler])
def test_a_name_that_is_given_and_empty_is_none(give: Callable[[str, str], Any]) -> None:
    namespace = f"case-{uuid.uuid4().hex}"
    try:
        with pytest.raises((TypeError, ValueError), match=r"the name of an "):
            give("", namespace)
    finally:
        with contextlib.suppress(KeyError):  # a refused event makes no namespace
            namespaces.unregister(namespace)


@pytest.mark.parametrize("give", [_decorate, _register, _carry, _codec])
@pytest.mark.parametrize("name", ["\ud800", "a\udfffb", "n" * 1025, ""], ids=["alone", "within", "long", "empty"])
def test_names_that_no_message_can_carry(give: Callable[[str, str], Any], name: str) -> None:
    namespace = f"case-{uuid.uuid4().hex}"
    try:
        with pytest.raises((TypeError, ValueError), match=r"the name of an? "):
            give(name, namespace)
        assert name not in carried
        give("n" * 1024, namespace)
    finally:
        carried.pop("n" * 1024, None)
        with contextlib.suppress(KeyError):  # what is carried has no namespace
            namespaces.unregister(namespace)
