"""The atasks that a worker serves: those of its namespace, as they are registered by now."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from atasks.errors import closest
from atasks.options import MAX_ATTEMPTS
from atasks.transport.schedules import CallMaker
from atasks.worker.builtin import BUILTIN, builtin_task

if TYPE_CHECKING:
    from atasks.definitions import BaseTask
    from atasks.options import Executor
    from atasks.registry import RegistryItem
    from atasks.transport.subscription import Subscription
    from atasks.wire import Call

__all__ = ["ServedTasks", "Tasks"]

logger = logging.getLogger("atasks.worker")

SEARCHED: Final = 50
"""The search for names that resemble unknown ones takes one part of so many of the time, at the most."""


class Tasks(CallMaker, Protocol):
    """The part of a namespace that a worker needs. `atasks.Router` has it."""

    namespace: str


class ServedTasks:
    """The atasks of one namespace, and those that every worker has."""

    def __init__(self, tasks: Tasks) -> None:
        self._namespace = tasks.namespace
        self._registry = tasks.registry
        self._next_search = 0.0
        """When names that resemble an unknown one may be searched for again (monotonic)."""

    def names(self) -> list[str]:
        """The names of the atasks of the namespace."""
        return self._registry.names()

    def find(self, name: str) -> BaseTask[..., Any] | None:
        """Return the atask that serves calls of this name; None: nothing here does."""
        item = self._registry.items.get(name)  # the registry of a namespace makes no items
        return builtin_task(name, self._namespace) if item is None else item.task

    def _items(self) -> list[tuple[str, RegistryItem]]:
        return list(self._registry.items.items())  # a thread may register another one meanwhile

    def queues(self, default: str) -> list[str]:
        """The work queues of the atasks; `default` is that of those which name none, and the only one if there are
        no atasks."""
        items = [item for _, item in self._items() if not getattr(item, "on_demand", False)]
        return sorted({item.options.queue or default for item in items}) or [default]

    def without_queue(self, names: Sequence[str]) -> list[str]:
        """Those of the atasks of these names that name no queue."""
        items = [(name, self._registry.items.get(name)) for name in names]
        return [name for name, item in items if item is not None and item.options.queue is None]

    @property
    def executors(self) -> dict[str, Executor]:
        """Which executor each blocking atask needs, by the name of the atask."""
        return {name: item.task.executor for name, item in self._items() if item.task.executor}

    @property
    def attempts(self) -> dict[str, int]:
        """The attempts of those atasks that may have more than `MAX_ATTEMPTS`."""
        found = ((name, item.options.max_attempts) for name, item in self._items())
        return {name: attempts for name, attempts in found if attempts > MAX_ATTEMPTS}

    @property
    def subscriptions(self) -> list[Subscription]:
        """Those of the atasks that handle events."""
        found = (getattr(item, "subscription", None) for _, item in self._items())
        return [subscription for subscription in found if subscription is not None]

    def cap(self, call: Call) -> None:
        """Hold a call that asks for very many attempts to those that are allowed here: each may kill a worker."""
        item = self._registry.get(call.task)
        if call.task not in BUILTIN:
            own = 0 if item is None else item.options.max_attempts
            call.max_attempts = min(call.max_attempts, max(own, MAX_ATTEMPTS))

    def warn_of_unused(self, queues: Sequence[str], default: str) -> None:
        """Log which of these queues none of the atasks uses."""
        used = sorted({item.options.queue or default for _, item in self._items()})
        for queue in queues:
            if queue not in used:
                logger.warning(
                    "no atask that is loaded uses queue %r (they use %s): only calls that name that queue, by "
                    ".options(queue=...), are served from it",
                    queue,
                    ", ".join(map(repr, used)) or "none",
                )

    def unknown(self, name: str) -> str:
        """Return the text for the caller of an atask that nothing here knows. To search thousands of names for
        similar ones takes longer than many calls do, and anybody may send unknown names: so not each text has a
        hint if many are wanted."""
        names, near = self.names(), list[str]()
        if time.monotonic() >= self._next_search:
            began = time.thread_time()
            near = closest(name, names)
            self._next_search = time.monotonic() + SEARCHED * (time.thread_time() - began)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it serves {len(names)} atasks"
        return f"no worker here knows {name!r} ({hint}): start a worker with the module that defines it"
