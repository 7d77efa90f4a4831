"""Functions that `once` is given have names that tell them apart, and that are the same in every run."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

from atasks.resume.naming import name_of


def pair(first: object, second: object) -> tuple[object, object]:
    return first, second


def test_lambdas_are_told_apart_by_the_local_functions_that_they_call() -> None:
    def charge(x: int) -> int:
        return x

    def refund(x: int) -> int:
        return -x

    x = 1
    assert charge(x) != refund(x)
    assert name_of(lambda: charge(x)) != name_of(lambda: refund(x))


def test_lambdas_and_local_functions_are_told_apart_by_their_defaults() -> None:
    def local(name: str) -> list[Callable[[], str]]:
        def plain(name: str = name) -> str:
            return name

        def by_key(*, name: str = name) -> str:
            return name

        return [plain, by_key, lambda name=name: name, lambda *, name=name: name]  # type: ignore[misc]

    for one, other in zip(local("a"), local("b"), strict=True):
        assert (one(), other()) == ("a", "b")
        assert name_of(one) != name_of(other)
    for one, again in zip(local("a"), local("a"), strict=True):
        assert name_of(one) == name_of(again)


def test_partials_are_told_apart_though_something_in_them_cannot_be_pickled() -> None:
    lock = threading.Lock()
    assert name_of(partial(pair, "a", lock)) != name_of(partial(pair, "b", lock))
    assert name_of(partial(pair, first="a", second=lock)) != name_of(partial(pair, first="b", second=lock))
    assert name_of(partial(pair, "a", lock)) == name_of(partial(pair, "a", threading.Lock()))


def test_what_a_function_sets_is_not_in_its_name() -> None:
    """A later run is given its results and does not call it: the function would have another name, and be done
    again."""
    paid = left = 0
    amount = 2

    def pay() -> int:
        nonlocal paid
        paid += amount
        return paid

    def within() -> Any:
        def inner() -> None:
            nonlocal left
            left += amount

        inner()
        return left

    for function in (pay, within):
        before = name_of(function)
        assert function() == 2
        assert name_of(function) == before
        amount = 3
        assert name_of(function) != before, "it uses this, and does not set it"
        amount = 2


def test_a_large_value_that_a_function_uses_is_not_copied_into_its_name() -> None:
    def local(value: object) -> list[Callable[..., object]]:
        def uses() -> object:
            return value

        def has(value: object = value, *, other: object = value) -> object:
            return value, other

        return [uses, has, lambda: value]

    for large, other in ((bytes(2**23), bytes(2**23 - 1) + b"x"), ("x" * 2**23, "x" * (2**23 - 1) + "\ud800")):
        tracemalloc.start()
        try:
            names = [name_of(function) for function in local(large)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert all(len(told) < 1000 for _, told in names)
        assert peak < (1.1 * 2**23 if isinstance(large, str) else 2**20), "a text has its bytes for a moment"
        assert names == [name_of(function) for function in local(large)]
        assert not set(names).intersection(name_of(function) for function in local(other))
