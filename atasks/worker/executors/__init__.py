"""Where blocking functions run at a worker: threads and processes of its own."""

from __future__ import annotations

from atasks.worker.executors.pools import Executors

__all__ = ["Executors"]
