"""Files of keys where messages are sealed: whose they are, and that nobody sees them."""

from __future__ import annotations

import logging
import os
import re
import uuid
from contextlib import suppress
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import InvalidKeys
from atasks.testing import Site, soon
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller import probe
from tests.amqp.seals.attacker import call
from tests.keys import KeyFiles


async def test_a_wrong_file_is_noticed(
    amqp_url: str, prefix: str, keys: KeyFiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    namespace = f"case-{uuid.uuid4().hex}"
    options: dict[str, Any] = {"namespace": namespace, "prefix": prefix}
    async with atasks.serve(amqp_url, keys=keys.worker, **options):
        async with atasks.connect(amqp_url, keys=keys.caller("thief"), **options) as transport:
            assert isinstance(transport, AMQPTransport)
            assert transport.calling.prober is not None
            await soon(transport.calling.prober)
        assert "has answered the key" not in caplog.text
        async with atasks.connect(amqp_url, keys=keys.stranger, **options) as transport:
            assert isinstance(transport, AMQPTransport)
            assert transport.calling.prober is not None
            await soon(transport.calling.prober)
        assert f"has answered the key 'stranger' of {keys.stranger}" in caplog.text


async def test_a_worker_needs_a_worker_s_key(amqp_url: str, prefix: str, keys: KeyFiles) -> None:
    with pytest.raises(InvalidKeys, match=r"key 'shop', .* may only call: .* the word serve"):
        async with atasks.serve(amqp_url, prefix=prefix, keys=keys.caller("shop")):
            pass
    with pytest.raises(ValueError, match="unsealed='maybe': 'refuse' or 'accept'"):
        async with atasks.serve(amqp_url, prefix=prefix, keys=keys.worker, unsealed="maybe"):  # type: ignore[arg-type]
            pass


async def test_keys_are_found_by_the_environment_and_can_be_left_out(
    amqp_url: str, prefix: str, keys: KeyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATASKS_KEYS", str(keys.caller("shop")))
    transport = AMQPTransport(amqp_url, "case-env", prefix=prefix)
    assert transport.session.seals is not None
    assert transport.session.seals.keys.own.name == "shop"
    assert AMQPTransport(amqp_url, "case-env", prefix=prefix, keys="").session.seals is None
    monkeypatch.setenv("ATASKS_KEYS", str(keys.folder / "no.keys"))
    with pytest.raises(InvalidKeys, match="No such file"):
        AMQPTransport(amqp_url, "case-env", prefix=prefix)
    async with atasks.connect("loopback:", namespace="case-env", keys="no.keys", unsealed="accept"):
        pass
    monkeypatch.delenv("ATASKS_KEYS")
    assert AMQPTransport(amqp_url, "case-env", prefix=prefix).session.seals is None


def look() -> str:
    """The memory and the environment of a process that runs functions for a worker, as far as they are texts."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = bytearray()
    with open("/proc/self/mem", "rb") as memory:
        for area, rights, *_, name in maps:
            if rights.startswith("rw") and not name.startswith("["):
                start, end = (int(part, 16) for part in area.split("-"))
                for page in range(start, end, PAGESIZE):
                    with suppress(OSError):  # one that guards a thread's stack cannot be read
                        found += os.pread(memory.fileno(), PAGESIZE, page)
    texts = re.findall(rb"[\w-]{43}", found)
    started = [Path(f"/proc/self/{name}").read_text() for name in ("environ", "cmdline")]
    return f"{sorted(set(texts))} {started}"


async def test_secrets_show_nowhere(site: Site, keys: KeyFiles, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "atasks")
    secrets = [line.split()[1] for line in (keys.own, *keys.lines.values())]

    site.atask(name="look", executor="process")(look)
    async with site.open():
        found = await call(site, "look")
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        shown = repr(
            [
                transport.session.seals
                and (transport.session.seals.keys, transport.session.seals.keys.own, vars(transport.session.seals))
            ]
        )
    for secret in (*secrets, *(repr(keys.key(name).secret) for name in ("w", "shop"))):
        for text in (found, shown, caplog.text):
            assert secret not in text


def test_a_variable_that_is_set_and_empty_is_an_error(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something was to name the file and did not. Without seals whoever can publish could run code."""
    monkeypatch.setenv("ATASKS_KEYS", "")
    with pytest.raises(InvalidKeys, match=r"\$ATASKS_KEYS is set and empty"):
        AMQPTransport(prefix=prefix)
    assert AMQPTransport(prefix=prefix, keys="").seals is None
