"""The base of stages and pipelines, by which code below them knows one."""

from __future__ import annotations

__all__ = ["Pipe"]


class Pipe:
    """A stage or a pipeline: `source | pipe` and `run | pipe` put it behind them, and call it for nothing."""
