"""References to the function of an atask, for a process: by its module, or by value."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from atasks import modules
from atasks.namespaces import namespace_item

if TYPE_CHECKING:
    from atasks.definitions import BaseTask

__all__ = ["Reference", "check", "find", "refer"]


class Reference(Struct, array_like=True, frozen=True):
    """The place at which another process finds a function."""

    module: str | None
    """The module to import; None: the function is in `pickled`."""
    file: bytes | None
    """The file of the module, in case its name does not lead to it: a name of a file need not be text."""
    qualname: str
    namespace: str
    name: str
    """The name of the atask."""
    pickled: bytes = b""


def check(function: Callable[..., Any], executor: str) -> None:
    """Raise a TypeError that says why, if `function` cannot run in such an executor."""
    name = getattr(function, "__qualname__", repr(function))
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise TypeError(
            f"{name} is a coroutine function, which runs on the event loop: executor={executor!r} is for blocking "
            "functions; leave the option out, or make it a plain function"
        )
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"{name} is a generator, and executor={executor!r} is for blocking functions: return a list"
        )
    if executor != "process":
        return
    if not hasattr(function, "__qualname__"):  # a partial, an object that can be called: it travels by value
        try:
            pickle.dumps(function)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be pickled for another process ({type(error).__name__}: {error}): "
                "use executor='thread', or decorate a function at the top level of a module"
            ) from error
    elif "<locals>" in name or "<lambda>" in name:
        raise TypeError(
            f"{name} cannot be imported by another process: executor='process' takes functions at the top level "
            "of a module, and static methods; use executor='thread', or move it"
        )


def refer(task: BaseTask[..., Any]) -> Reference:
    """The reference to the function of an atask."""
    function = task.local
    qualname = getattr(function, "__qualname__", None)
    if qualname is not None and task.module is not None:
        file = getattr(sys.modules.get(function.__module__), "__file__", None)
        path = os.fsencode(os.path.abspath(file)) if isinstance(file, str) else None
        return Reference(task.module, path, qualname, task.namespace, task.name)
    from atasks.codecs.cloudpickle import dumps  # a prompt or a notebook: nothing can be imported from it

    return Reference(None, None, qualname or task.name, task.namespace, task.name, dumps(function))


def find(reference: Reference) -> Callable[..., Any]:
    """The function, importing its module if need be. Raises whatever the import raises."""
    if reference.module is None:
        with modules.importing():
            function: Callable[..., Any] = pickle.loads(reference.pickled)
        return function
    with modules.importing():
        _import(reference.module, reference.file)
    from atasks.definitions import BaseTask

    registry = getattr(namespace_item(reference.namespace), "registry", None)
    item = None if registry is None else registry.get(reference.name)
    if item is not None:
        return item.task.local  # type: ignore[no-any-return]  # an item holds anything
    found = modules.follow(sys.modules[reference.module], reference.qualname)
    return found.local if isinstance(found, BaseTask) else found


def _import(module: str, file: bytes | None) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}.") or file is None:
            raise
        modules.load(os.fsdecode(file))  # a script whose file has another name than its module, or is a link
