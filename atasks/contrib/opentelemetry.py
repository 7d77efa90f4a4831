"""Traces of calls for OpenTelemetry: needs `pip install opentelemetry-api`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

import atasks
from atasks import Invocation, Middleware

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Tracing"]

SUBMITTED: Final = "atasks-submitted"
"""The header that tells the worker that nobody awaits the call: its run begins a trace of its own."""

Proceed = Callable[[], Awaitable[Any]]


class Tracing(Middleware):
    """A span around each call at its caller, and one around each run at its worker: `atasks.use(Tracing())`.

    An awaited call is a CLIENT span, and its run the SERVER span below it; nested calls are below the run that
    makes them. A submitted call is a PRODUCER span, and its run a CONSUMER span in a trace of its own, with a link
    to the producer. The span of a stream lasts until the stream is over. The context travels in the headers of the
    call, in the format of the global propagator.

    Both sides need the middleware: a run whose caller has none begins a trace. Without a tracer provider, as the
    SDK sets it up, it does nothing but pass the context on.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        """Use this provider, or the global one. A copy in a process of `executor="process"` uses the global one
        of that process."""
        self._provider = tracer_provider

    def __getstate__(self) -> dict[str, Any]:
        return {"_provider": None}

    async def call(self, call: Invocation, proceed: Proceed) -> Any:
        """Send the call inside of a CLIENT span, or submit it inside of a PRODUCER span."""
        kind = SpanKind.PRODUCER if call.submitted else SpanKind.CLIENT
        span = self._tracer().start_span(_name(call, kind), kind=kind, attributes=_attributes(call, kind))
        inside = trace.set_span_in_context(span)
        propagate.inject(call.headers, inside)
        if call.submitted:
            call.headers[SUBMITTED] = "1"
        token = context.attach(inside)
        try:
            result = await proceed()
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            context.detach(token)
        return _until_over(span, result)

    async def run(self, call: Invocation, proceed: Proceed) -> Any:
        """Run the call inside of a SERVER span, or inside of a CONSUMER span."""
        submitted = SUBMITTED in call.headers
        kind = SpanKind.CONSUMER if submitted else SpanKind.SERVER
        caller = propagate.extract(call.headers, context.Context())
        links = [Link(trace.get_current_span(caller).get_span_context())] if submitted else []
        span = self._tracer().start_span(
            _name(call, kind),
            context.Context() if submitted else caller,
            kind,
            _attributes(call, kind),
            [link for link in links if link.context.is_valid],
        )
        # Nothing is detached: the context ends with the run, and the generator of a stream still needs it.
        context.attach(trace.set_span_in_context(span, caller))
        try:
            result = await proceed()
        except BaseException as error:
            _fail(span, error)
            raise
        return _until_over(span, result)

    def _tracer(self) -> trace.Tracer:
        return trace.get_tracer("atasks", atasks.__version__, self._provider)


def _name(call: Invocation, kind: SpanKind) -> str:
    """The name of a span: that of the atask; for messages, the conventions want the operation before the queue."""
    operation = {SpanKind.PRODUCER: "send", SpanKind.CONSUMER: "process"}.get(kind)
    return call.name if operation is None else f"{operation} {call.queue}"


def _attributes(call: Invocation, kind: SpanKind) -> dict[str, str | int]:
    """The attributes that the conventions for RPC and for messaging name, and those of atasks."""
    found: dict[str, str | int] = {
        "atasks.task": call.name,
        "atasks.call_id": call.id,
        "atasks.root_id": call.root_id,
        "atasks.queue": call.queue,
        "atasks.attempt": call.attempt,
    }
    if call.parent_id is not None:
        found["atasks.parent_id"] = call.parent_id
    if kind in (SpanKind.CLIENT, SpanKind.SERVER):
        return found | {"rpc.system.name": "atasks", "rpc.method": call.name}
    sends = kind is SpanKind.PRODUCER
    return found | {
        "messaging.system": "atasks",
        "messaging.destination.name": call.queue,
        "messaging.operation.name": "send" if sends else "process",
        "messaging.operation.type": "send" if sends else "process",
        "messaging.message.id": call.id,
    }


def _fail(span: Span, error: BaseException) -> None:
    """End the span of a call that has failed."""
    kind = type(error)
    span.set_attribute("error.type", kind.__qualname__ if kind.__module__ == "builtins" else _full_name(kind))
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, kind.__qualname__))
    span.end()


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _until_over(span: Span, result: Any) -> Any:
    """End the span, or have the stream that the result is end it."""
    if hasattr(type(result), "__aiter__"):
        return _items(span, result)
    span.end()
    return result


async def _items(span: Span, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
    count = 0
    try:
        async for item in stream:
            count += 1
            yield item
    except GeneratorExit:  # its consumer has left
        span.set_attribute("atasks.items", count)
        span.end()
        raise
    except BaseException as error:
        span.set_attribute("atasks.items", count)
        _fail(span, error)
        raise
    span.set_attribute("atasks.items", count)
    span.end()
