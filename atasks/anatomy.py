"""Exception objects taken apart and put together again, without running any of their code."""

from __future__ import annotations

import copyreg
import importlib
import sys
from types import BuiltinMethodType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, TypeGuard

__all__ = [
    "bare",
    "class_name",
    "find",
    "get_plainly",
    "importable_name",
    "is_rebuildable",
    "members",
    "pickles_itself",
    "restore",
    "set_plainly",
    "state",
]

_PICKLING = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)


def class_name(cls: type) -> tuple[str, str]:
    """Module and qualified name, whatever the class makes of them."""
    module = vars(type)["__module__"].__get__(cls)
    qualname: str = vars(type)["__qualname__"].__get__(cls)
    return module if isinstance(module, str) else "?", qualname


def importable_name(cls: type) -> tuple[str, str] | None:
    """The names by which another process finds the class, or None: it is a local one, or a notebook's."""
    from atasks.modules import MAIN_NAMES, main_name

    module, qualname = class_name(cls)
    dotted = main_name() if module in MAIN_NAMES else module
    if dotted is None:
        return None
    try:
        return (dotted, qualname) if _walk(sys.modules[module], qualname) is cls else None
    except (AttributeError, KeyError):
        return None


def find(module: str, qualname: str) -> Any:
    """Import what `importable_name` named; raises whatever importing raises."""
    from atasks.modules import main_name

    main_name()  # makes sys.modules know __main__ by its dotted name
    return _walk(importlib.import_module(module), qualname)


def _walk(found: Any, qualname: str) -> Any:
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def is_rebuildable(cls: object) -> TypeGuard[type[BaseException]]:
    """Whether instances may reach a caller: those of other classes (`SystemExit`...) would end its program."""
    return isinstance(cls, type) and issubclass(cls, Exception | BaseExceptionGroup)


def pickles_itself(cls: type) -> bool:
    """Whether the class, and not one of Python's own among its bases, says how it is pickled."""
    return cls in copyreg.dispatch_table or any(
        name in vars(base) for base in cls.__mro__ if base.__module__ != "builtins" for name in _PICKLING
    )


def bare(cls: type[BaseException], *args: Any) -> BaseException:
    """An instance without state: neither `__init__` nor a `__new__` that is written in Python runs.

    `args` are those of the `__new__` that Python's own base class has. TypeError if there is no such instance.
    """
    for base in cls.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, BuiltinMethodType):
            try:
                exc = new(cls, *args)
            except TypeError:  # not the base that lays out the object in memory, or a class that refuses this
                continue
            if isinstance(exc, BaseException):
                return exc
    raise TypeError(f"no instance of {cls.__qualname__} can be made without its __init__")


def state(exc: BaseException) -> dict[str, Any]:
    """Everything but `args`, notes and links: the attributes, those in slots and in C structures included."""
    found: dict[str, Any] = {}
    for name, descriptor in _descriptors(type(exc)).items():
        try:
            value = descriptor.__get__(exc, type(exc))
        except Exception:  # most often an AttributeError: it is not set
            continue
        if value is not None or descriptor.__objclass__.__module__ != "builtins":
            found[name] = value  # None is what Python's own have when nothing was set
    found.update(get_plainly(exc, "__dict__"))
    found.pop("__notes__", None)
    return found


def restore(exc: BaseException, attributes: dict[str, Any]) -> None:
    """Give an instance what `state` found; its `__setattr__` and its properties are not asked."""
    descriptors = _descriptors(type(exc))
    for name, value in attributes.items():
        descriptor = descriptors.get(name)
        if descriptor is None:
            get_plainly(exc, "__dict__")[name] = value
            continue
        try:
            descriptor.__set__(exc, value)
        except (AttributeError, TypeError):
            if descriptor.__get__(exc, type(exc)) != value:  # it cannot be set, and does not follow from the rest
                raise


def get_plainly(exc: BaseException, name: str) -> Any:
    """`args`, `__dict__` or one of the links, whatever the class makes of these names."""
    return vars(BaseException)[name].__get__(exc)


def set_plainly(exc: BaseException, name: str, value: Any) -> None:
    """Set `args` or one of the links, although the class may refuse to have its attributes set."""
    vars(BaseException)[name].__set__(exc, value)


def members(exc: BaseException) -> tuple[BaseException, ...]:
    """Those of a group, whatever its class makes of `exceptions`; empty for other exceptions."""
    if not issubclass(type(exc), BaseExceptionGroup):
        return ()
    found: tuple[BaseException, ...] = vars(BaseExceptionGroup)["exceptions"].__get__(exc)
    return found


def _descriptors(cls: type) -> dict[str, GetSetDescriptorType | MemberDescriptorType]:
    found: dict[str, GetSetDescriptorType | MemberDescriptorType] = {}
    for base in cls.__mro__:
        if base in (BaseException, BaseExceptionGroup, object):
            continue
        for name, value in vars(base).items():
            if isinstance(value, GetSetDescriptorType | MemberDescriptorType) and not name.startswith("__"):
                found.setdefault(name, value)
        if base is AttributeError:
            found.pop("obj", None)  # the object that lacks the attribute may be anything, and of any size
    return found
