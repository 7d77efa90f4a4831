"""Payloads that take many frames."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from atasks import MsgpackCodec
from atasks.signing import keyfile
from atasks.testing import Site, soon
from tests.keys import KeyFiles

SIZE = 3 * 2**20
CONTENT = random.Random(1).randbytes(SIZE)


@pytest.fixture(params=["plain", "sealed", "encrypted"])
def large_site(request: pytest.FixtureRequest, new_transport: Any, tmp_path: Path) -> Any:
    options: dict[str, Any] = {}
    if request.param != "plain":
        word = ["encrypt"] if request.param == "encrypted" else []
        options["keys"] = KeyFiles(tmp_path).write("all", keyfile.new_line("all", "serve", *word))
    site = Site(lambda namespace, **given: new_transport(namespace, **options, **given))

    @site.atask(name="same")
    async def same(*values: Any) -> Any:
        for value in values:
            if isinstance(value, bytearray):
                value += b"written here"
        return values

    yield site
    site.close()


def _same(site: Site) -> Any:
    item = site.router.registry.get("same")
    assert item is not None
    return item.task


async def test_large_values_arrive_as_what_they_were(large_site: Site) -> None:
    values = (CONTENT, bytearray(CONTENT), [CONTENT[1:], "x" * SIZE], {"small": b"abc"})
    async with large_site.open():
        call = asyncio.ensure_future(_same(large_site)(*values))
        await asyncio.sleep(0)
        values[1][:3] = b"new"  # the argument is a copy
        found = await soon(call)
    assert found[0] == CONTENT
    assert type(found[0]) is bytes
    assert found[1] == bytearray(CONTENT) + b"written here"
    assert type(found[1]) is bytearray
    assert found[2:] == values[2:]


async def test_many_large_calls_and_small_ones_at_once(large_site: Site) -> None:
    contents = [CONTENT[number:] if number % 3 else bytes([number]) for number in range(12)]
    async with large_site.open():
        found = await soon(asyncio.gather(*(_same(large_site)(content) for content in contents)))
    assert found == [(content,) for content in contents]


async def test_large_values_of_another_codec(site: Site) -> None:
    MsgpackCodec(site.namespace)

    @site.atask
    async def twice(value: bytes) -> list[bytes]:
        assert type(value) is bytes
        return [value, value]

    async with site.open():
        assert await soon(twice(CONTENT)) == [CONTENT, CONTENT]
