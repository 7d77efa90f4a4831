"""The router of a namespace in which atasks are defined, before it is used.

A process of `executor="process"` imports modules that define atasks, and calls none: it does without routers,
which import `asyncio` and all that calls need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from atasks.namespaces import namespace_item, namespaces
from atasks.options import validate_queue
from atasks.registration import define
from atasks.registry import Manager

if TYPE_CHECKING:
    from atasks.router import Router

__all__ = ["router_to_define"]


class UnmadeRouter:
    """Stands for a router until more is asked of it than to register atasks: then the router is made."""

    extra_options = ()

    def __init__(self, namespace: str) -> None:
        self._namespace = validate_queue(namespace, "namespace")
        registry = getattr(namespace_item(namespace), "registry", None)
        self.registry = registry or Manager(namespace, unite=False)
        namespaces.register(namespace, router=self, registry=self.registry)

    def register_atask(self, name: str, coro: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """Do what `Router.register_atask` does."""
        return define(self.registry, name, self._namespace, coro, options)

    def __getattr__(self, name: str) -> Any:
        if name == "_namespace":  # it is being copied, and has nothing yet
            raise AttributeError(name)
        from atasks.router import get_router  # when it is first needed

        return getattr(get_router(self._namespace), name)


def router_to_define(namespace: str) -> Router:
    """Return the router of the namespace, made or not."""
    router = getattr(namespace_item(namespace), "router", None)
    return router or cast("Router", UnmadeRouter(namespace))
