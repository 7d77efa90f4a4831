"""The registration of atasks, by a router or before there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from atasks.definitions import ATask, BaseTask, StreamTask
from atasks.errors import RegisteringTwice
from atasks.functions import identity, is_stream, place
from atasks.options import ONE_CALL, TaskOptions, validate_name
from atasks.registry import Manager

__all__ = ["define"]

_log = logging.getLogger("atasks")


def define(
    registry: Manager,
    name: str,
    namespace: str,
    coro: Callable[..., Any],
    options: Mapping[str, Any],
    extra_options: tuple[str, ...] = (),
) -> BaseTask[..., Any]:
    """Register an atask, as `Router.register_atask` does, and return it."""
    validate_name(name, "the name of an atask")
    resolved = TaskOptions().with_changes(options, extra_options)
    given = next((option for option in ONE_CALL if getattr(resolved, option) is not None), None)
    if given is not None:
        how = f"{name}.options({given}=...)" + (".submit(...)" if resolved.only_submits else "(...)")
        raise TypeError(f"{given!r} belongs to one call: write {how}")
    if resolved.resume and (is_stream(coro) or resolved.executor == "process"):
        what = "is a stream" if is_stream(coro) else "runs in a process, where it can make no calls"
        raise TypeError(f"{name} {what}: resume= is for functions that await other atasks")
    if resolved.executor is not None:
        from atasks.worker.executors.references import check

        check(coro, resolved.executor)
    definition = identity(coro)  # now: the values in a closure may change later
    known = registry.get(name)
    if known is not None:
        if known.coro is not coro and not _equal(known.identity, definition):
            raise RegisteringTwice(
                f"two atasks are named {name!r} in namespace {namespace!r}: {place(known.coro)} and "
                f"{place(coro)}; rename one, or give it @atask(name=...)"
            )
        registry.unregister(name)
        if known.coro is not coro:
            places = (place(coro), place(known.coro))
            _log.info("%r is defined again at %s: this replaces the definition at %s", name, *places)
    kind = StreamTask if is_stream(coro) else ATask
    task: BaseTask[..., Any] = kind(coro, name, namespace, resolved)
    registry.register(name, coro=coro, options=resolved, task=task, identity=definition)
    return task


def _equal(known: Any, new: Any) -> bool:
    try:
        return bool(known == new)
    except Exception:  # the arguments of a partial may compare as they like
        return False
