"""Traces of calls over a real broker, as the SDK's exporter gets them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from atasks import CallTimeout, Retry, event, schedule, unschedule, use
from atasks.contrib.opentelemetry import Tracing
from atasks.pipeline import map
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport

pytestmark = pytest.mark.usefixtures("amqp_leaks")


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def site(amqp_url: str, prefix: str, provider: TracerProvider) -> Iterator[Site]:
    site = Site(lambda namespace: AMQPTransport(amqp_url, namespace, prefix=prefix))
    use(Tracing(provider), site.namespace)
    yield site
    site.close()


async def spans(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """The spans, in the order in which they began, once there are so many."""
    await until(lambda: len(exporter.get_finished_spans()) >= count)
    found = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    assert len(found) == count, [(span.name, span.kind) for span in found]
    return found


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def identity(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def traces(found: list[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in found if span.context is not None}


async def test_nested_calls_are_one_trace(
    site: Site, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    tracer = provider.get_tracer("test")

    @site.atask
    async def inner() -> object:
        return baggage.get_baggage("user")

    @site.atask(executor="thread")
    def blocking() -> int:
        with tracer.start_as_current_span("in the thread"):
            return 2

    @site.atask
    async def outer() -> object:
        with tracer.start_as_current_span("own"):
            user = await inner()
        await blocking()
        return user

    async with site.open():
        token = context.attach(baggage.set_baggage("user", "ann"))
        with tracer.start_as_current_span("request"):
            assert await soon(outer()) == "ann"
            assert trace.get_current_span().get_span_context().is_valid
        context.detach(token)
        found = await spans(exporter, 9)
    assert len(traces(found)) == 1
    request, call, run, own, inner_call, inner_run, blocking_call, blocking_run, thread = found
    names = [span.name for span in found]
    assert names == [
        "request",
        outer.name,
        outer.name,
        "own",
        *[inner.name] * 2,
        *[blocking.name] * 2,
        "in the thread",
    ]
    for below, above in (
        (call, request),
        (run, call),
        (own, run),
        (inner_call, own),
        (inner_run, inner_call),
        (blocking_call, run),
        (blocking_run, blocking_call),
        (thread, blocking_run),
    ):
        assert parent(below) == identity(above), below.name
    assert [span.kind for span in (call, run)] == [SpanKind.CLIENT, SpanKind.SERVER]
    assert call.attributes is not None
    assert run.attributes is not None
    assert inner_run.attributes is not None
    assert dict(call.attributes) == dict(run.attributes)
    assert call.attributes["rpc.system.name"] == "atasks"
    assert call.attributes["rpc.method"] == call.attributes["atasks.task"] == outer.name
    assert call.attributes["atasks.queue"] == "default"
    assert call.attributes["atasks.attempt"] == 1
    assert inner_run.attributes["atasks.parent_id"] == call.attributes["atasks.call_id"]
    assert inner_run.attributes["atasks.root_id"] == call.attributes["atasks.call_id"]
    assert {span.status.status_code for span in found} == {StatusCode.UNSET}


async def test_failures_are_errors_of_both_spans(site: Site, exporter: InMemorySpanExporter) -> None:
    @site.atask
    async def fail(how: str) -> None:
        if how == "wait":
            await asyncio.Event().wait()
        raise KeyError(how)

    async with site.open():
        with pytest.raises(KeyError):
            await soon(fail("raise"))
        with pytest.raises(CallTimeout):
            await soon(fail.options(timeout=2.0)("wait"))  # time enough to begin
        found = await spans(exporter, 4)
    assert {span.status.status_code for span in found} == {StatusCode.ERROR}
    types = [span.attributes and span.attributes["error.type"] for span in found]
    assert types == ["KeyError", "KeyError", "atasks.errors.CallTimeout", "asyncio.exceptions.CancelledError"]
    assert [event.name for span in found for event in span.events] == ["exception"] * 4
    assert len(traces(found)) == 2


async def test_tries_are_runs_of_one_call(site: Site, exporter: InMemorySpanExporter) -> None:
    tries = []

    @site.atask(retry=Retry(on=KeyError, wait=0.0, jitter=0.0))
    async def second_time() -> int:
        tries.append(1)
        if len(tries) < 2:
            raise KeyError
        return len(tries)

    async with site.open():
        assert await soon(second_time()) == 2
        call, *runs = await spans(exporter, 3)
    assert [parent(run) for run in runs] == [identity(call)] * 2
    assert [run.status.status_code for run in runs] == [StatusCode.ERROR, StatusCode.UNSET]
    assert call.status.status_code is StatusCode.UNSET


async def test_the_spans_of_streams_last_until_they_are_over(site: Site, exporter: InMemorySpanExporter) -> None:
    @site.atask
    async def nested() -> None: ...

    @site.atask
    async def numbers(count: int, fail: bool = False) -> AsyncIterator[int]:
        await nested()
        for number in range(count):
            yield number
        if fail:
            raise KeyError

    async with site.open():
        async with asyncio.timeout(30):
            assert [number async for number in numbers(3)] == [0, 1, 2]
        call, run, nested_call, nested_run = await spans(exporter, 4)
        assert (parent(run), parent(nested_call), parent(nested_run)) == tuple(map_ids(call, run, nested_call))
        assert call.attributes is not None
        assert run.attributes is not None
        assert (call.attributes["atasks.items"], run.attributes["atasks.items"]) == (3, 3)
        assert (call.end_time or 0) >= (run.end_time or 0) >= (nested_run.end_time or 0)
        exporter.clear()
        with pytest.raises(KeyError):
            async for _ in numbers(1, fail=True):
                pass
        found = await spans(exporter, 4)
        assert [span.status.status_code for span in found[:2]] == [StatusCode.ERROR] * 2
        exporter.clear()
        async with numbers(1_000_000) as stream:
            assert await soon(anext(stream)) == 0
        found = await spans(exporter, 4)
        assert found[0].status.status_code is StatusCode.UNSET


def map_ids(*found: ReadableSpan) -> Iterator[int]:
    return (identity(span) for span in found)


async def test_submitted_calls_are_messages_with_a_link(site: Site, exporter: InMemorySpanExporter) -> None:
    @site.atask
    async def double(number: int) -> int:
        return 2 * number

    async with site.open():
        assert await soon(await soon(map(double).submit(4))) == 8
        send, process, call, run = await spans(exporter, 4)
        exporter.clear()
        assert await soon(await soon(double.submit(5))) == 10
        one_send, one_process = await spans(exporter, 2)
        exporter.clear()
        handle = await soon(double.options(unique="five").submit(5))
        assert await soon(handle) == 10
        for span in await spans(exporter, 2):
            assert span.attributes is not None
            assert span.attributes["messaging.message.id"] == handle.id
    assert [span.kind for span in (send, process, call, run)] == [
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CLIENT,
        SpanKind.SERVER,
    ]
    assert (parent(process), parent(call)) == (None, identity(process))
    for producer, consumer in ((send, process), (one_send, one_process)):
        assert producer.context is not None
        assert [link.context.span_id for link in consumer.links] == [identity(producer)]
        assert consumer.context is not None
        assert consumer.context.trace_id != producer.context.trace_id
        assert (producer.name, consumer.name) == ("send default", "process default")
        assert consumer.attributes is not None
        assert producer.attributes is not None
        assert consumer.attributes["messaging.system"] == "atasks"
        assert consumer.attributes["messaging.destination.name"] == "default"
        assert str(consumer.attributes["messaging.message.id"]).startswith(
            str(producer.attributes["messaging.message.id"])
        )
        assert producer.attributes["messaging.operation.type"] == "send"


async def test_events_and_schedules_are_messages_with_a_link(site: Site, exporter: InMemorySpanExporter) -> None:
    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="billing")
    async def bill(order: int) -> None:
        assert order == 7

    @site.atask
    async def note(text: str) -> None:
        assert text == "a"

    async with site.open():
        await soon(paid(7))
        send, process = await spans(exporter, 2)
        exporter.clear()
        await soon(schedule("notes", note, ["a"], every=0.1))
        await until(lambda: len(exporter.get_finished_spans()) >= 2)
        await soon(unschedule("notes", namespace=site.namespace))
        tick, run, *_ = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    assert (send.name, process.name) == ("send events:paid", "process events:paid:billing")
    assert (tick.name, run.name) == ("send default", "process default")
    assert tick.attributes is not None
    assert tick.attributes["atasks.task"] == note.name
    assert run.attributes is not None
    assert tick.attributes["messaging.message.id"] == run.attributes["messaging.message.id"]
    for producer, consumer in ((send, process), (tick, run)):
        assert (producer.kind, consumer.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert [link.context.span_id for link in consumer.links] == [identity(producer)]
        assert parent(consumer) is None
        assert {producer.status.status_code, consumer.status.status_code} == {StatusCode.UNSET}


def test_the_api_alone_is_needed() -> None:
    text = "import sys, atasks.contrib.opentelemetry; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
