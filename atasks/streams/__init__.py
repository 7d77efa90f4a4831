"""Remote streams: async generators that run on workers."""

from __future__ import annotations

from atasks.streams.remote import RemoteStream

__all__ = ["RemoteStream"]
