"""Threads and processes of a worker, in which blocking functions run."""

from __future__ import annotations

from atasks.worker.executors.pools import Executors

__all__ = ["Executors"]
