"""The `atasks` command. Nothing but `python -m atasks` imports this package."""

from __future__ import annotations
