"""Calls over RabbitMQ. `transport` is the caller's side and the connection's life, `intake` the worker's side."""

from __future__ import annotations

from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["AMQPTransport"]
