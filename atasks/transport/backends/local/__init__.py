"""The local transport: worker processes of one host around a hub on a Unix socket, without a broker."""

from __future__ import annotations

from atasks.transport.backends.local.transport import LocalTransport

__all__ = ["LocalTransport"]
