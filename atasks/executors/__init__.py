"""Where blocking functions run at a worker: threads and processes of its own."""

from __future__ import annotations

from atasks.executors.pools import Pools

__all__ = ["Pools"]
