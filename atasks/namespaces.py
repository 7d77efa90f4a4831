"""The namespaces of this process: each has one registry, one router, one codec and its transports."""

from __future__ import annotations

from atasks.registry import Manager

__all__ = ["namespaces"]

namespaces = Manager("namespaces", unite=True)
"""Name of a namespace -> `RegistryItem` with `router`, `registry`, `codec` and `transport`, where they exist."""
