"""A caller and workers with keys, and an attacker beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from atasks import MsgpackCodec
from atasks.testing import Site
from tests.amqp.peer import Peer
from tests.amqp.seals.attacker import Attacker
from tests.keys import KeyFiles, caller_first


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    """The caller of the site is `shop`; `thief` is another one, whom the workers know too."""
    return KeyFiles(tmp_path, shop="", thief="tasks=echo,count queues=default max_attempts=2")


@pytest.fixture
def queue_type(request: pytest.FixtureRequest) -> str:
    """That of the work queues; `over_both` has a test run over both."""
    return getattr(request, "param", "classic")


@pytest.fixture
def site(amqp_url: str, prefix: str, amqp_leaks: None, keys: KeyFiles, queue_type: str) -> Iterator[Site]:
    """A caller with the key `shop`, workers, and atasks that data made by hand can call."""
    site = Site(caller_first(amqp_url, prefix, keys, "shop", queue_type=queue_type))
    MsgpackCodec(site.namespace)
    ran: list[Any] = []
    site.ran = ran  # type: ignore[attr-defined]

    @site.atask(name="echo")
    async def echo(value: Any = None) -> Any:
        ran.append(value)
        return value

    @site.atask(name="secret")
    async def secret() -> str:
        ran.append("secret")
        return "secret"

    @site.atask(name="forever")
    async def forever() -> None:
        ran.append("forever")
        await asyncio.Event().wait()

    @site.atask(name="count")
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    yield site
    site.close()


@pytest.fixture
async def attacker(amqp_url: str, prefix: str, site: Site) -> AsyncIterator[Attacker]:
    async with Peer.connect(amqp_url, prefix, site.namespace) as peer:
        yield Attacker(peer)
