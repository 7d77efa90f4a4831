"""Calls over RabbitMQ. `transport` is the life of the connection, `caller` and `worker` are its two sides."""

from __future__ import annotations

from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["AMQPTransport"]
