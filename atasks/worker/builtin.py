"""Atasks that every worker has, besides those that are registered."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, Final

from atasks.wire import RUN_PIPELINE, RUN_TRIES

if TYPE_CHECKING:
    from atasks.definitions import ATask

__all__ = ["BUILTIN", "builtin_task"]

BUILTIN: Final = {
    RUN_PIPELINE: "atasks.pipeline.submitted.coordinator:run_pipeline",
    RUN_TRIES: "atasks.submitted.tries:run_tries",
}
"""Name on the wire -> where its function is; imported at the first call."""


def builtin_task(name: str, namespace: str) -> ATask[..., Any] | None:
    """The atask of this name that every worker has, if it is one."""
    return _load(name, namespace) if name in BUILTIN else None


@functools.cache
def _load(name: str, namespace: str) -> ATask[..., Any]:
    from atasks.definitions import ATask
    from atasks.options import TaskOptions

    module, _, function = BUILTIN[name].partition(":")
    return ATask(getattr(importlib.import_module(module), function), name, namespace, TaskOptions())
