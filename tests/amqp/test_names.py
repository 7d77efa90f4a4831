"""Names that are too long together for the broker are refused where they are given, and cost nobody anything."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

import atasks
from atasks import InvalidName, Limit, atask
from atasks.pipeline import map
from atasks.testing import soon
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.topology import Topology

LONG = "n" * 100
TOGETHER = "at most 200"


@pytest.mark.parametrize(
    ("prefix", "namespace", "queue"), [(LONG, LONG, "q"), (LONG, "default", LONG), ("atasks", LONG, LONG)]
)
async def test_transport_is_not_made(amqp_url: str, prefix: str, namespace: str, queue: str) -> None:
    with pytest.raises(ValueError, match=TOGETHER):
        AMQPTransport(amqp_url, namespace, prefix=prefix, queue=queue)
    for block in (atasks.connect, atasks.serve):
        with pytest.raises(ValueError, match=TOGETHER):
            async with block(f"{amqp_url}?prefix={prefix}&queue={queue}", namespace=namespace):
                pass


@pytest.mark.parametrize("prefix", ["amq.shop", "amq."])
async def test_prefix_that_the_broker_keeps_to_itself(amqp_url: str, prefix: str) -> None:
    given: list[tuple[str, dict[str, Any]]] = [(amqp_url, {"prefix": prefix}), (f"{amqp_url}?prefix={prefix}", {})]
    for block in (atasks.connect, atasks.serve):
        for url, options in given:
            with pytest.raises(ValueError, match=r"'amq\.'"):
                async with block(url, **options):
                    pass


def test_a_name_that_is_far_too_long_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="at most 100") as caught:
        Topology("\N{GRINNING FACE}" * 10_000, "default")
    assert len(str(caught.value)) < 100


async def test_queue_of_a_call_and_of_a_worker(amqp_url: str, amqp_leaks: None, prefix: str) -> None:
    namespace = f"case-{uuid.uuid4().hex}" + "n" * 40

    @atask(namespace=namespace)
    async def echo(n: int) -> int:
        return n

    @atask(namespace=namespace, queue=LONG)
    async def items() -> Any:
        yield 1

    async def read() -> None:
        async for _ in items():
            pass

    options: dict[str, Any] = {"namespace": namespace, "prefix": prefix}
    async with atasks.connect(amqp_url, **options) as transport:
        async with atasks.serve(amqp_url, queues=["default"], grace=0, **options):
            assert isinstance(transport, AMQPTransport)
            link = transport.session.link
            for on_no_worker in ("wait", "error"):
                with pytest.raises(InvalidName, match=TOGETHER):
                    await soon(echo.options(queue=LONG, on_no_worker=on_no_worker)(1))  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=TOGETHER):
                await soon(read())
            with pytest.raises(ValueError, match=TOGETHER):
                await soon(map(echo.options(queue=LONG)).submit(1))
            assert await soon(asyncio.gather(*(echo(n) for n in range(10)))) == list(range(10))
            assert transport.session.link is link
        for queues in ([LONG], None):
            with pytest.raises(ValueError, match=TOGETHER):
                async with atasks.serve(amqp_url, queues=queues, grace=0, **options):
                    pass


@pytest.mark.parametrize("key", [None, str])
async def test_limit_whose_queues_would_have_names_that_are_too_long(
    amqp_url: str, amqp_leaks: None, prefix: str, key: Any
) -> None:
    """Whoever takes a token of it is told so at once, a call of an atask that has it too."""
    namespace, prefix = f"case-{uuid.uuid4().hex}".ljust(90, "n"), prefix.ljust(100, "p")
    limit = Limit("l" * 60, at_once=1, key=key, namespace=namespace)

    @atask(namespace=namespace, queue="q", limit=limit)
    async def echo(n: int) -> int:
        return n

    @atask(namespace=namespace, queue="q")
    async def free(n: int) -> int:
        return n

    async with atasks.serve(amqp_url, namespace=namespace, prefix=prefix, queue="q", queues=["q"], grace=0):
        for waiting in (echo(1), limit.take() if key is None else limit.of(1).take()):
            with pytest.raises(InvalidName, match=r"limit 'l+' needs queues with names of up to"):
                await soon(waiting)
        assert await soon(free(3)) == 3


@pytest.mark.parametrize(("key", "room"), [(None, 77), ("k", 36)])
def test_longest_names_of_a_limit_fit(key: str | None, room: int) -> None:
    most = Topology("p" * 100, "n" * room)
    assert len(f"{most.limit('l' * 60, key and key * 40)}.amendment") == 255
    with pytest.raises(InvalidName, match="names of up to 256 characters"):
        Topology("p" * 100, "n" * (room + 1)).limit("l" * 60, key)


@pytest.mark.parametrize("kind", ["places", "rate", "cooling", "amendment", "changes", "lock"])
async def test_limit_that_is_named_like_a_queue_of_another_one(amqp_url: str, prefix: str, kind: str) -> None:
    """Each has tokens of its own, whichever is used first."""
    namespace = f"case-{uuid.uuid4().hex}"

    def limit(name: str, at_once: int) -> Limit:
        return Limit(name, at_once=at_once, per_second=100, namespace=namespace)

    async with atasks.connect(amqp_url, namespace=namespace, prefix=prefix):
        for names in ((f"a.{kind}", "a"), ("b", f"b.{kind}")):
            first, second = limit(names[0], 1), limit(names[1], 2)
            async with asyncio.timeout(30), first, second, second:
                pass


async def test_limit_that_is_named_like_a_value_of_the_key_of_another_one(amqp_url: str, prefix: str) -> None:
    namespace = f"case-{uuid.uuid4().hex}"
    keyed = Limit("a", at_once=1, key=str, namespace=namespace)
    named = Limit("a:k", at_once=1, namespace=namespace)
    async with (
        atasks.connect(amqp_url, namespace=namespace, prefix=prefix),
        asyncio.timeout(30),
        keyed.of("k"),
        named,
    ):
        pass


def test_queues_of_a_limit_are_not_those_of_another_one() -> None:
    topology = Topology("p", "n")
    assert topology.limit("a", "k") == "p.limit.n.a:k"
    assert topology.limit("a:k", None) == "p.limit.n.a:k."
    assert topology.limit("a:k.", None) == "p.limit.n.a:k.."
    assert topology.limit("a:k", "k") == "p.limit.n.a:k.:k"
    assert topology.limit("a:k.l", None) == "p.limit.n.a:k.l"
    assert topology.limit("a.b", None) == "p.limit.n.a.b"
    assert topology.limit("a.places", None) == "p.limit.n.a.places."
    assert topology.limit("a.places.", None) == "p.limit.n.a.places.."
    assert topology.limit("a.places", "k") == "p.limit.n.a.places.:k"


def test_longest_names_fit() -> None:
    topology = Topology("p" * 50, "n" * 50)
    queue = topology.check("q" * 100)
    worker = f"{'h' * 24}.4194304.{'0' * 8}"
    names = [
        *topology.all(queue),
        topology.lease(queue, worker, 100_000),
        topology.control_queue(worker, 100_000),
        topology.queue_key(queue),
        topology.new_reply_queue("u" * 255),
        Topology("p" * 100, "n" * 99).kept_steps(f"{'0' * 32}.1000"),
        Topology("p" * 100, "n" * 99).lock("0" * 32),
    ]
    assert max(len(name.encode()) for name in names) <= 255
