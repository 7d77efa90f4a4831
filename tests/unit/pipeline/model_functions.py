"""The functions of random pipelines: what they return, and where they fail, follows from the item and a number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from atasks.pipeline import Pipeline, after, each, filter, flat_map, map

__all__ = ["Boom", "Functions", "make_functions"]


class Boom(Exception):
    """The exception that functions of generated pipelines raise."""


def number(value: Any) -> int:
    """Any value that comes by, as a number."""
    if isinstance(value, int):
        return value
    if value is None:
        return 7
    total = 11
    for item in value:
        total = (total * 31 + number(item)) % 1_000_003
    return total


def mixed(salt: int, value: Any) -> int:
    """A number that looks random."""
    return (number(value) * 7919 + salt * 104_729 + 13) % 1_000_003 >> 2


# -- the functions of stages


def fails(salt: int, modulus: int, item: Any) -> bool:
    return modulus > 0 and mixed(salt + 1, item) % modulus == 0


def mapped(salt: int, modulus: int, item: Any) -> int:
    if fails(salt, modulus, item):
        raise Boom
    return mixed(salt, item) % 1000


def chosen(salt: int, modulus: int, item: Any) -> bool:
    return mapped(salt, modulus, item) % 3 > 0


def children(salt: int, modulus: int, item: Any) -> Iterator[int]:
    for child in range(mixed(salt, item) % 4):
        yield mixed(salt, item) % 1000 + child
    if fails(salt, modulus, item):
        raise Boom


def told(salt: int, modulus: int) -> int:
    return salt


def pauses(salt: int, item: Any) -> int:
    """The number of turns of the loop for which a function waits."""
    return max(0, mixed(salt + 2, item) % 16 - 8)


def asynchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(salt: int, modulus: int, *item: Any) -> Any:
        for _ in range(pauses(salt, item)):
            await asyncio.sleep(0)
        return function(salt, modulus, *item)

    call.__name__ = function.__name__
    return call


async def yielded(salt: int, modulus: int, item: Any) -> AsyncIterator[int]:
    for child in children(salt, modulus, item):
        for _ in range(pauses(salt, child)):
            await asyncio.sleep(0)
        yield child


async def listed(salt: int, modulus: int, item: Any) -> list[int]:
    return list(children(salt, modulus, item))


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(salt: int, modulus: int, *item: Any) -> Any:
        if pauses(salt, item) > 6:
            time.sleep(0.0001)
        return function(salt, modulus, *item)

    call.__name__ = function.__name__
    return call


BODIES: dict[str, Callable[..., Any]] = {
    "map": mapped,
    "filter": chosen,
    "flat_map": children,
    "each": mapped,
    "after": told,
}
MAKERS: dict[str, Callable[..., Pipeline[..., Any, Any]]] = {
    "map": map,
    "filter": filter,
    "flat_map": flat_map,
    "each": each,
    "after": after,
}

Functions = Mapping[tuple[str, str], Callable[..., Any]]


def make_functions(remote: Callable[..., Any]) -> Functions:
    """The functions of stages, by role and by where they run: `remote` makes an atask of a coroutine function."""
    made: dict[tuple[str, str], Callable[..., Any]] = {}
    for role, body in BODIES.items():
        made[role, "inline"] = body
        made[role, "thread"] = slow(body)
        made[role, "process"] = body
        made[role, "coroutine"] = yielded if role == "flat_map" else asynchronous(body)
        made[role, "atask"] = remote(listed if role == "flat_map" else asynchronous(body), name=f"model-{role}")
    made["flatten", "inline"] = list
    made["flatten", "atask"] = remote(flattened, name="model-flatten")
    return made


async def flattened(items: list[Any]) -> list[Any]:
    return items
