"""The namespaces of this process: each has one registry, one router, one codec and its transports."""

from __future__ import annotations

from atasks.registry import Manager, RegistryItem

__all__ = ["namespace_item", "namespaces"]

namespaces = Manager("namespaces", unite=True)
"""Name of a namespace -> `RegistryItem` with `router`, `registry`, `codec` and `transport`, where they exist."""


def namespace_item(name: str) -> RegistryItem:
    """Return the item of the namespace; an unknown one is made."""
    item = namespaces.get(name)
    assert item is not None, "the manager of namespaces makes what is missing"
    return item
