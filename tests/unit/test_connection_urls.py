"""The URLs of `connect`: which are refused, and the options in them."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

import atasks
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.local.url import parse


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("loopbck:", "did you mean loopback:"),
        ("loopback", "did you mean loopback:"),
        ("ampq://localhost/", "did you mean amqp"),
        ("http://localhost/", "names no transport; known schemes: loopback:"),
        ("", "known schemes"),
        ("http://[bad", "names no transport"),
    ],
)
async def test_urls_that_name_no_transport(url: str, message: str) -> None:
    for enter in (atasks.connect, atasks.serve):
        with pytest.raises(atasks.InvalidURL, match="names no transport") as caught:
            async with enter(url):
                pass
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "ampq://user:secret@host/",
        "user:secret@host/",
        "user:secret@host:5672",
        "redis:user:secret@host",
        "amqp//user:secret@host",
        "unix://user:secret@host/x",
        "local://user:secret@host",
        "local://user:secret",
        "amqp://user:secret",
        "amqp://user:secret@host:port/",
        "amqp://user:secret@[/",
        "amqps://user:secret@/",
        "http://[::1]user:secret@",
        "user:secret",
        "redis:user:secret",
        "unix:user:secret@/x",
        "unix:user:secret@",
        "unix:/user:secret@/x",
        "unix:////user:secret@host/x",
        f"unix:///user:secret@host/{'x' * 200}",
        "local:user:secret@x",
        "local:/user:secret@x",
        "unix:///user%3Asecret%40host/x",
        " amqp://user:secret#x@host/",
        " amqp://user:secret?x@host/",
        "amqp:/user:secret#x@host/",
        "amqp:///user:secret?x@host/",
        "amqp://user:12secret#x@host/",
        "amqp://user:12345#secret@host/",
        "unix:user:secret#x@host/",
        "unix:user:secret?x@host/",
        "unix:user:x?secret@host/",
        "local:user:secret#x@host/",
        "local:user:secret?x@host/",
        b"amqp://user:secret@host/",
        ["amqp://a/", b"amqp://user:secret@host/"],
        ["amqp://a/", "user:secret@host"],
    ],
)
async def test_passwords_are_not_repeated(url: Any) -> None:
    with pytest.raises((atasks.InvalidURL, TypeError)) as caught:
        async with atasks.connect(url):
            pass
    assert "secret" not in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("path", ["/run/a:b@c.sock", "/run/a:b/@c.sock", "/run/me@host:1/c.sock"])
def test_a_path_may_have_the_signs_of_a_password(path: str) -> None:
    assert parse(f"unix://{path}") == (path, {})
    assert parse(f"unix:{path}") == (path, {})


@pytest.mark.parametrize(
    "url",
    [
        "local://[",
        "local:///x",
        "unix:///x?queue",
        "unix:///x?queue=",
        "unix:///x?colour=red",
        f"unix:///x?workers={'9' * 400}",
        f"unix:///x?workers={'9' * 5000}",
        "unix:///x?workers=-1",
        "unix:///x?workers=1.5",
        f"unix:///x?keep_bytes={'9' * 400}",
        "unix:///x?keep_runs=nan",
        "unix:///\ud800",
        f"unix:///{'x' * 300}",
        f"amqp://{'h' * 300}/",
        "amqp://..",
        "amqp://a..b/",
        "amqp://h\ud800/",
        "amqp://localhost:99999/",
        "amqp://localhost/?consumer_timeout=nan",
        "amqp://localhost/?consumer_timeout=-1",
        f"amqp://localhost/?max_priority={'9' * 400}",
        f"amqp://localhost/?keep_runs={'9' * 400}",
        "amqp://user:12345#x@localhost/",
        "unix:///run/a#b.sock",
        "loopback:#part",
    ],
)
async def test_every_wrong_url_is_an_invalid_url(url: str) -> None:
    with pytest.raises(atasks.InvalidURL) as caught:
        async with atasks.connect(url):
            pass
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("option", ["timeout", "consumer_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
async def test_seconds_of_a_connection_are_checked(option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=option):
        async with atasks.connect("amqp://localhost/", **{option: value}):
            pass


async def test_a_url_is_text() -> None:
    with pytest.raises(TypeError, match="a URL is a string"):
        async with atasks.connect(5):  # type: ignore[arg-type]
            pass


def test_options_of_the_transport_may_stand_in_an_amqp_url() -> None:
    url = "amqp://u:p%40s@h:1234/v%2Fh?prefix=shop&queue_type=quorum&consumer_timeout=60&heartbeat=5"
    transport = AMQPTransport.from_url(url, "default", {"queue": "gpu"})
    assert transport.session.urls == ["amqp://u:p%40s@h:1234/v%2Fh?heartbeat=5"]
    assert (transport.session.topology.prefix, transport.session.topology.queue_type) == ("shop", "quorum")
    assert (transport.consumer_timeout, transport.queue) == (60.0, "gpu")


def test_several_urls_name_the_nodes_of_one_broker() -> None:
    transport = AMQPTransport.from_url(["amqp://a/?prefix=shop", "amqps://b/"], "default", {})
    assert transport.session.urls == ["amqp://a/", "amqps://b/"]
    assert transport.session.topology.prefix == "shop"
    with pytest.raises(atasks.InvalidURL, match="say different things of prefix: \\['bank', 'shop'\\]"):
        AMQPTransport.from_url(["amqp://a/?prefix=shop", "amqp://b/?prefix=bank"], "default", {})


@pytest.mark.parametrize("urls", [[], ["amqp://a/", "loopback:"]])
async def test_several_urls_have_one_transport(urls: list[str]) -> None:
    with pytest.raises(atasks.InvalidURL, match="give one scheme for all"):
        async with atasks.connect(urls):
            pass


def test_arguments_go_before_options_in_the_url() -> None:
    transport = AMQPTransport.from_url("amqp://h/?prefix=shop", "default", {"prefix": "bank"})
    assert transport.session.topology.prefix == "bank"


@pytest.mark.parametrize(
    ("query", "message"),
    [("max_priority=x", "not a number"), ("queue_type=x", "'classic' or 'quorum'"), ("prefix=a b", "prefix")],
)
def test_a_wrong_option_in_the_url_says_so(query: str, message: str) -> None:
    with pytest.raises(atasks.InvalidURL, match=message):
        AMQPTransport.from_url(f"amqp://h/?{query}", "default", {})


@pytest.mark.parametrize("rest", ["?keep_runs=5", "//?x=1", "add", "//host/"])
async def test_loopback_has_nothing_behind_its_scheme(namespace: str, rest: str) -> None:
    for enter in (atasks.connect, atasks.serve):
        with pytest.raises(atasks.InvalidURL, match='give "loopback:"'):
            async with enter(f"loopback:{rest}", namespace=namespace):
                pass
    for url in ("loopback:", "loopback://", "loopback:///"):
        async with atasks.connect(url, namespace=namespace):
            pass
