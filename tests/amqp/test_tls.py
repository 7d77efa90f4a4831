"""TLS to a broker with certificates of one's own, and what is said when one is refused."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import atasks
from atasks import ConnectFailed, InvalidURL, atask
from tests.amqp.certificates import DAY, Authority
from tests.brokers.ports import accepts, free_ports
from tests.brokers.private_node import PrivateNode, find_sbin
from tests.waiting import wait_until


class TLSNode(PrivateNode):
    """A node that speaks TLS too, with a certificate for one host."""

    def __init__(self, sbin: Path, authority: Authority, certificate: tuple[Path, Path], *, asks: bool) -> None:
        super().__init__(sbin)
        (self.tls_port,) = free_ports(1)
        file, key = certificate
        self._settings = (
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {authority.file}\n"
            f"ssl_options.certfile = {file}\n"
            f"ssl_options.keyfile = {key}\n"
            f"ssl_options.verify = {'verify_peer' if asks else 'verify_none'}\n"
            f"ssl_options.fail_if_no_peer_cert = {'true' if asks else 'false'}\n"
        )

    def start(self) -> None:
        super().start()
        wait_until(lambda: accepts(self.tls_port), "the node takes connections with TLS too")

    def _new_folder(self) -> Path:
        folder = super()._new_folder()
        with (folder / "rabbitmq.conf").open("a") as file:
            file.write(self._settings)
        return folder

    def url_of(self, host: str = "localhost", **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"amqps://guest:guest@{host}:{self.tls_port}/?{query}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Iterator[TLSNode]:
    """A node that asks its clients for certificates."""
    yield from started(authority, authority.sign("broker"), asks=True)


@pytest.fixture
def expired(authority: Authority) -> Iterator[TLSNode]:
    """A node whose certificate is out of date."""
    yield from started(authority, authority.sign("expired", until=-DAY), asks=False)


def started(authority: Authority, certificate: tuple[Path, Path], *, asks: bool) -> Iterator[TLSNode]:
    sbin = find_sbin()
    assert sbin is not None, "install rabbitmq-server: this test needs a private node"
    node = TLSNode(sbin, authority, certificate, asks=asks)
    try:
        node.start()
        yield node
    finally:
        node.close()


async def test_own_authority_and_client_certificate(node: TLSNode, authority: Authority, tmp_path: Path) -> None:
    file, key = authority.sign("client", host="client")
    namespace = uuid.uuid4().hex
    for host in ("localhost", "127.0.0.1"):
        url = node.url_of(host, cafile=authority.file, certfile=file, keyfile=key)

        @atask(namespace=namespace)
        async def double(n: int) -> int:
            return 2 * n

        async with atasks.serve(url, namespace=namespace), atasks.connect(url, namespace=namespace):
            assert await double(21) == 42
    without = node.url_of(cafile=authority.file)
    stranger, stranger_key = Authority(tmp_path, "stranger").sign("stranger")
    other = node.url_of(cafile=authority.file, certfile=stranger, keyfile=stranger_key)
    for url in (without, other):
        with pytest.raises(ConnectFailed) as caught:
            await connect(url)
        assert "docker" not in str(caught.value)
        assert "certificate" in str(caught.value)


async def connect(url: str) -> None:
    async with atasks.connect(url, namespace=uuid.uuid4().hex):
        pass


async def test_what_is_said_of_the_broker_s_certificate(node: TLSNode, authority: Authority) -> None:
    file, key = authority.sign("client2", host="client")
    with pytest.raises(ConnectFailed, match="nobody who is trusted here has signed the broker's"):
        await connect(node.url_of(certfile=file, keyfile=key))
    plain = f"amqps://guest:guest@127.0.0.1:{node.port}/?cafile={authority.file}"
    with pytest.raises(ConnectFailed, match="this port speaks no TLS: give an amqp:// URL"):
        await connect(plain)


async def test_a_wrong_host(authority: Authority) -> None:
    for node in started(authority, authority.sign("elsewhere", host="broker.example"), asks=False):
        with pytest.raises(ConnectFailed, match="is for another host: give a host that it names"):
            await connect(node.url_of(cafile=authority.file))


async def test_an_expired_certificate_and_no_verification(
    expired: TLSNode, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    for options in ({}, {"no_verify_ssl": 0}, {"no_verify_ssl": "false"}, {"no_verify_ssl": "No"}):
        with pytest.raises(ConnectFailed, match="certificate is out of date, or the clock here is wrong"):
            await connect(expired.url_of(cafile=authority.file, **options))
    assert not [record for record in caplog.records if "not verified" in record.getMessage()]
    for switch in ("1", "true", "YES"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "atasks.amqp"):
            await connect(expired.url_of(no_verify_ssl=switch))
        assert any(
            "the certificate of localhost is not verified" in record.getMessage() for record in caplog.records
        )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("amqps://localhost/?no_verify_ssl=maybe", "no_verify_ssl in the URL is 1"),
        ("amqps://localhost/?no_verify_ssl=", "no_verify_ssl in the URL is 1"),
        (
            "amqps://localhost/?cafile=/no/such.pem",
            "cafile in the URL names no file that exists here: /no",
        ),
        ("amqps://localhost/?certfile=/no/such.pem", "certfile in the URL names no file"),
        (f"amqps://localhost/?keyfile={__file__}", "keyfile in the URL needs a certfile beside it"),
        (f"amqp://localhost/?cafile={__file__}", "cafile in the URL is for TLS: begin it with amqps://"),
        ("amqp://localhost/?no_verify_ssl=1", "no_verify_ssl in the URL is for TLS"),
    ],
)
async def test_options_that_are_wrong(url: str, message: str) -> None:
    with pytest.raises(InvalidURL, match=message):
        await connect(url)


async def test_certificates_that_are_none(authority: Authority, tmp_path: Path) -> None:
    """The error is that of the URL, before anything is connected; a key with a password would be asked for at the
    terminal, while everything waits."""
    file, key = authority.sign("client3", host="client")
    _, other = authority.sign("client4", host="client")
    junk, locked = tmp_path / "junk.pem", tmp_path / "locked.key"
    junk.write_text("-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n")
    openssl = ["openssl", "pkey", "-aes128", "-passout", "pass:x", "-in", str(key), "-out", str(locked)]
    await asyncio.to_thread(subprocess.run, openssl, check=True, capture_output=True)
    for options, message in (
        (f"cafile={junk}", "cafile in the URL has no certificates"),
        (f"cafile={tmp_path}", "cafile in the URL has no certificates"),
        ("cafile=", "cafile in the URL names no file"),
        ("cadata=", "cadata in the URL is no certificate"),
        ("cadata=%%%", "cadata in the URL is no certificate"),
        ("cadata=AAAA", "cadata in the URL is no certificate"),
        (f"certfile={junk}", "certfile in the URL has no certificate and key that fit"),
        (f"certfile={file}", "certfile in the URL has no certificate and key that fit"),
        (f"certfile={file}&keyfile={other}", "certfile in the URL has no certificate and key that fit"),
        (f"certfile={file}&keyfile={locked}", "certfile in the URL has no certificate and key that fit"),
    ):
        with pytest.raises(InvalidURL, match=message):
            await connect(f"amqps://localhost:1/?{options}")
