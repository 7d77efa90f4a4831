"""Rows of the table of docs/security.md that no seal decides: what a broker lets whoever may publish do."""

from __future__ import annotations

import asyncio
import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

import atasks
from atasks import DecodeError, Limit, MsgpackCodec
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from tests.amqp.peer import Peer
from tests.keys import KeyFiles, caller_first

encode = msgspec.msgpack.encode
CALL, REPLY, CANCEL = 1, 2, 3
VALUE = 0


class Touch:
    """Makes a file where it is unpickled, for any code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is not there until foreign code has run."""
    return tmp_path / "mark"


@pytest.fixture
def msgpack_site(site: Site) -> Site:
    """A site whose codec carries no code."""
    MsgpackCodec(site.namespace)

    @site.atask(name="echo")
    async def echo(value: Any) -> Any:
        return value

    @site.atask(name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    return site


def task(site: Site, name: str) -> Any:
    item = site.router.registry.get(name)
    assert item is not None
    return item.task


async def test_a_pickling_codec_runs_at_a_worker_what_anybody_publishes(
    site: Site, peer: Peer, mark: Path
) -> None:
    @site.atask(name="echo")
    async def echo(value: Any) -> Any:
        return None

    async with site.open():
        body = pickle.dumps(((Touch(mark),), {}))
        await peer.send([CALL, 1, "an-id", "echo", body, "cloudpickle"])
        await peer.answer()
        assert mark.exists()


async def test_a_pickling_codec_runs_at_a_caller_what_anybody_answers(site: Site, peer: Peer, mark: Path) -> None:
    @site.atask(name="echo")
    async def echo(value: Any) -> Any:
        return None

    requests = await peer.declare_work_queue("default")
    async with site.open(serve=False):
        waiting = asyncio.create_task(echo(1))
        request = await soon(requests.get())
        ((_, _, call_id, *_),) = msgspec.msgpack.decode(request.body)
        reply = [REPLY, 1, call_id, VALUE, pickle.dumps(Touch(mark)), "cloudpickle"]
        await peer.send(reply, queue=request.reply_to)
        await soon(waiting)
        assert mark.exists()


async def test_a_pickling_codec_runs_what_anybody_puts_into_a_record(site: Site, peer: Peer, mark: Path) -> None:
    gate = asyncio.Event()

    @site.atask(name="gated")
    async def gated() -> int:
        await gate.wait()
        return 1

    async with site.open():
        handle = await gated.submit()
        reply = [REPLY, 1, handle.id, VALUE, pickle.dumps(Touch(mark)), "cloudpickle"]
        await peer.send(reply, queue=f"{peer.prefix}.run.{site.namespace}.{handle.id}")
        await soon(handle)
        assert mark.exists()
        gate.set()
        await until(lambda: site.worker.held == 0)


async def test_msgpack_runs_no_code_of_whoever_publishes(msgpack_site: Site, peer: Peer, mark: Path) -> None:
    """A pickle is refused, also under the name of the codec that the worker has."""
    body = pickle.dumps(((Touch(mark),), {}))
    async with msgpack_site.open():
        for codec in ("cloudpickle", "pickle", "msgpack"):
            await peer.send([CALL, 1, f"an-id-{codec}", "echo", body, codec])
            ((_, _, _, status, *_),) = await peer.answer()
            assert status == atasks.wire.Status.DECODE_ERROR
    assert not mark.exists()


async def test_who_may_publish_calls_answers_and_cancels_what_it_knows(msgpack_site: Site, peer: Peer) -> None:
    async with msgpack_site.open():
        await peer.send([CALL, 1, "an-id", "echo", encode([["anything"], {}]), "msgpack"])
        ((_, _, _, status, value, *_),) = await peer.answer()
        assert (status, msgspec.msgpack.decode(value)) == (VALUE, "anything")
        for how in ("answer", "cancel"):
            waiting = asyncio.create_task(task(msgpack_site, "forever")())
            await until(lambda: msgpack_site.worker.runs, "it runs")
            call_id = msgpack_site.worker.runs[0].call.id
            transport = msgpack_site.caller
            assert isinstance(transport, AMQPTransport)
            if how == "cancel":
                key = f"queue:{msgpack_site.namespace}:default"
                await peer.control(encode([[CANCEL, 1, [call_id]]]), key)
                await until(lambda: msgpack_site.worker.held == 0, "it is cancelled")
                waiting.cancel()
                await asyncio.wait([waiting])
            else:
                queue = transport.session.reply_queue
                await peer.send([REPLY, 1, call_id, VALUE, encode(None), "msgpack"], queue=queue)
                assert await soon(waiting) is None
                msgpack_site.worker.cancel(call_id)
                await until(lambda: msgpack_site.worker.held == 0, "it is over")


@pytest.fixture
def pickling_site(amqp_url: str, prefix: str, amqp_leaks: None, tmp_path: Path) -> Iterator[Site]:
    """Keys, and a codec that carries code: the caller's line permits one atask, one at a time."""
    keys = KeyFiles(tmp_path, shop="tasks=echo,limited")
    site = Site(caller_first(amqp_url, prefix, keys, "shop"))
    yield site
    site.close()


async def test_a_line_permits_atasks_and_cannot_restrict_code(pickling_site: Site, mark: Path) -> None:
    @pickling_site.atask(name="echo")
    async def echo(value: Any) -> Any:
        return None

    @pickling_site.atask(name="other")
    async def other() -> None:
        raise AssertionError("it may not be called")

    async with pickling_site.open():
        with pytest.raises(DecodeError, match="key 'shop' may not call 'other'"):
            await soon(other())
        await soon(echo(Touch(mark)))
        assert mark.exists()


async def test_who_may_publish_adds_tokens_to_a_limit(pickling_site: Site, amqp_url: str, prefix: str) -> None:
    """With seals too: a token is an empty message, and who consumes it asks for no seal."""
    running, most = 0, 0
    gate = asyncio.Event()

    @pickling_site.atask(name="limited", limit=Limit(at_once=1, name="one"))
    async def limited() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with pickling_site.open(), Peer.connect(amqp_url, prefix, pickling_site.namespace) as peer:
        calls = [asyncio.create_task(limited()) for _ in range(5)]
        await until(lambda: running == 1, "one runs")
        transport = pickling_site.caller
        assert isinstance(transport, AMQPTransport)
        places = f"{transport.session.topology.limit('one', None)}.places"
        for _ in range(2):
            await peer.publish(b"", places, message_id="token")
        await until(lambda: running == 3, "three run")
        gate.set()
        await soon(asyncio.gather(*calls))
        assert most == 3


class Listener:
    """Stands between hosts, and keeps what passes by it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = parts.hostname, parts.port
        self.heard = bytearray()
        self.relays: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self.target)
        self.relays |= {
            asyncio.create_task(self._relay(reader, there_writer)),
            asyncio.create_task(self._relay(there_reader, writer)),
        }

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.heard += data
                writer.write(data)
        finally:
            writer.close()


@pytest.mark.parametrize("words", [None, "", "encrypt"], ids=["without keys", "with keys", "with encryption"])
async def test_who_reads_between_hosts_without_tls(
    amqp_url: str, prefix: str, amqp_leaks: None, tmp_path: Path, words: str | None
) -> None:
    """A listener reads the broker's password and all names; contents too, unless keys encrypt them."""
    namespace = f"case-{uuid.uuid4().hex}"
    MsgpackCodec(namespace)

    @atasks.atask(namespace=namespace, name="a-task")
    async def swap(text: str) -> str:
        if text == "fail":
            raise ValueError("why-it-failed")
        return text[::-1]

    listener, parts = Listener(amqp_url), urlsplit(amqp_url)
    server = await asyncio.start_server(listener.accept, "127.0.0.1", 0)
    url = f"amqp://{parts.username}:{parts.password}@127.0.0.1:{server.sockets[0].getsockname()[1]}{parts.path}"
    options: dict[str, Any] = {"prefix": prefix, "namespace": namespace}
    files = None if words is None else KeyFiles(tmp_path, shop=words)
    worker = {} if files is None else {"keys": files.worker}
    caller = {} if files is None else {"keys": files.caller("shop")}
    async with atasks.serve(url, grace=0, **options, **worker), atasks.connect(url, **options, **caller):
        assert await soon(swap("confidential")) == "laitnedifnoc"
        with pytest.raises(ValueError, match="why-it-failed"):
            await soon(swap("fail"))
    await asyncio.wait(listener.relays)
    server.close()
    heard = bytes(listener.heard)
    assert f"\0{parts.username}\0{parts.password}".encode() in heard
    assert f"{prefix}.q.{namespace}.default".encode() in heard
    for content in (b"a-task", b"confidential", b"laitnedifnoc", b"why-it-failed"):
        assert (content in heard) is (words != "encrypt")
