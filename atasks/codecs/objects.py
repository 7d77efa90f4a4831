"""Exception objects taken apart and put together again, without running any of their code."""

from __future__ import annotations

import copyreg
import importlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from types import (
    BuiltinMethodType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
    NoneType,
    WrapperDescriptorType,
)
from typing import Any, TypeGuard, cast

from atasks.modules import follow

__all__ = [
    "MAX_NAME",
    "MAX_PATH",
    "bare",
    "class_name",
    "find",
    "get_plainly",
    "held",
    "importable_name",
    "is_bare",
    "is_faithful",
    "is_rebuildable",
    "loaded",
    "members",
    "pickles_itself",
    "put",
    "restore",
    "set_plainly",
    "state",
    "suits",
    "works",
]

_PICKLING = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)


MAX_HELD = 1000
"""Exceptions in the values of one exception, and items of a list that are searched for them."""
MAX_PATH = 4
"""Steps from an exception to one that it holds."""
MAX_NAME = 1024
"""Characters of a name that travels."""
MAX_OFFSET = 1_000_000
"""Lines and columns in a SyntaxError that somebody sends."""

_PLAIN: frozenset[type] = frozenset({str, bytes, int, float, bool, NoneType})
_TEXT: frozenset[type] = frozenset({str, NoneType})
_NUMBER: frozenset[type] = frozenset({int, NoneType})
_FIELDS: dict[tuple[str, str], frozenset[type]] = {
    **{
        (f"Unicode{kind}Error", name): frozenset({of})
        for kind, held in (("Decode", bytes), ("Encode", str), ("Translate", str))
        for name, of in {"encoding": str, "object": held, "start": int, "end": int, "reason": str}.items()
    },
    **{("SyntaxError", name): _TEXT for name in ("msg", "filename", "text")},
    **{("SyntaxError", name): _NUMBER for name in ("lineno", "offset", "end_lineno", "end_offset")},
    ("SyntaxError", "print_file_and_line"): _PLAIN,
    **{("ImportError", name): _TEXT for name in ("msg", "name", "path")},
    **{("OSError", name): _PLAIN for name in ("errno", "strerror", "filename", "filename2")},
    ("OSError", "characters_written"): frozenset({int}),
    ("AttributeError", "name"): _TEXT,
    ("NameError", "name"): _TEXT,
    ("StopIteration", "value"): _PLAIN,
}
"""The types that the fields of Python's own exceptions may hold: their code reads memory by them."""


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
        return (dotted, qualname) if follow(sys.modules[module], qualname) is cls else None
    except (AttributeError, KeyError):
        return None


def loaded(module: str, qualname: str) -> Any:
    """The class that `importable_name` named, if its module is loaded here. Runs no code: modules and classes are
    looked into, and not asked. A LookupError if there is none."""
    from atasks.modules import Program, main_name

    main_name()  # makes sys.modules know __main__ by its dotted name
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        found = vars(found)[name] if type(found) in (ModuleType, Program) or isinstance(found, type) else None
        if not isinstance(found, type):
            raise LookupError(f"{qualname} is no class of {module}")
    return found


def find(module: str, qualname: str) -> Any:
    """Import what `importable_name` named; raises whatever importing raises."""
    from atasks.modules import main_name

    main_name()  # makes sys.modules know __main__ by its dotted name
    return follow(importlib.import_module(module), qualname)


def is_rebuildable(cls: object) -> TypeGuard[type[BaseException]]:
    """Return True if instances of the class may reach a caller: those of other classes (`SystemExit`...) would
    end its program."""
    return isinstance(cls, type) and issubclass(cls, Exception | BaseExceptionGroup)


def pickles_itself(cls: type) -> bool:
    """Return True if the class, and not one of Python's own among its bases, defines the way in which it is
    pickled."""
    return cls in copyreg.dispatch_table or any(
        name in vars(base) for base in cls.__mro__ if base.__module__ != "builtins" for name in _PICKLING
    )


def is_faithful(exc: BaseException, copy: object) -> bool:
    """Return True if a copy that the class's own pickling made says what the exception says.

    Its `args`, its text, and its plain attributes, unless the class says by `__getstate__` or `__setstate__` which
    of them travel.
    """
    if type(copy) is not type(exc) or not isinstance(copy, BaseException):
        return False
    args, others = get_plainly(exc, "args"), get_plainly(copy, "args")
    if len(args) != len(others) or not all(map(_alike, args, others)) or str(exc) != str(copy):
        return False
    own = (base for base in type(exc).__mro__ if base.__module__ != "builtins")
    if any(name in vars(base) for base in own for name in ("__getstate__", "__setstate__")):
        return True
    attributes, copies = state(exc), state(copy)
    return all(name in copies and _alike(value, copies[name]) for name, value in attributes.items())


def _alike(one: object, other: object) -> bool:
    return type(one) is type(other) and (type(one) not in _PLAIN or one == other)


def bare(cls: type[BaseException], *args: Any, plain: bool = False) -> BaseException:
    """An instance without state: neither `__init__` nor a `__new__` that is written in Python runs.

    With `plain` only Python's own base classes make one, whose fields `suits` knows.

    `args` are those of the `__new__` that Python's own base class has. TypeError if there is no such instance.
    """
    for base in cls.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, BuiltinMethodType):
            if plain and base.__module__ != "builtins":
                break
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


def is_bare(cls: type[BaseException]) -> bool:
    """Return True if an exception of this class can be put together from its parts."""
    try:
        bare(cls)
    except TypeError:
        return False
    return True


def suits(exc: BaseException, attributes: Any) -> bool:
    """Return True if the exception can be given these attributes, which a stranger may have sent: by name, with
    the types that the fields of Python's own classes need, whose code relies on them."""
    if type(attributes) is not dict:
        return False
    descriptors = _descriptors(type(exc))
    for name, value in attributes.items():
        if type(name) is not str:
            return False
        descriptor = descriptors.get(name)
        if descriptor is None or "__slots__" in vars(descriptor.__objclass__):  # a slot of a class in Python
            continue
        owner = descriptor.__objclass__
        # A traceback underlines a SyntaxError from one offset to the other.
        most = MAX_OFFSET if owner is SyntaxError else 2**31
        if type(value) not in _FIELDS.get((owner.__name__, name), ()) or not -most < _number(value) < most:
            return False
        if owner.__name__.startswith("Unicode") and _number(value) < 0:
            return False
    return True


def _number(value: object) -> int:
    """The value of a field that is a number; 0 for others."""
    return value if type(value) is int else 0


def works(exc: BaseException) -> bool:
    """Return True if `str(exc)` and `repr(exc)` work: a log shows either. Asked of classes in Python only."""
    asked = [show for name, show in (("__str__", str), ("__repr__", repr)) if _is_python(type(exc), name)]
    try:
        return all(isinstance(show(exc), str) for show in asked)
    except Exception:
        return False


def _is_python(cls: type, name: str) -> bool:
    own = next(vars(base)[name] for base in cls.__mro__ if name in vars(base))
    # That `__str__` of `object` asks the class's repr.
    return not isinstance(own, WrapperDescriptorType) or own is vars(object)["__str__"]


Path = list[int | str]
"""The path to a part of an exception: the position in `args` or the name of the attribute, and then the positions
in lists and tuples within each other."""


def held(exc: BaseException) -> Iterator[tuple[Path, BaseException]]:
    """The exceptions in `args` and in attributes, and those in lists and tuples there; so many as travel."""
    yield from itertools.islice(_held(exc), MAX_HELD)


def _held(exc: BaseException) -> Iterator[tuple[Path, BaseException]]:
    args = () if issubclass(type(exc), BaseExceptionGroup) else get_plainly(exc, "args")
    places: list[tuple[int | str, object]] = [*enumerate(args), *state(exc).items()]
    for place, value in places:
        if not isinstance(place, str) or len(place) <= MAX_NAME:
            yield from _exceptions_in(value, [place])


def _exceptions_in(value: object, path: Path) -> Iterator[tuple[Path, BaseException]]:
    if issubclass(type(value), BaseException):
        yield path, cast("BaseException", value)
    elif type(value) in (list, tuple) and len(path) < MAX_PATH:
        for position, item in enumerate(cast("list[object]", value)[:MAX_HELD]):
            yield from _exceptions_in(item, [*path, position])


def put(container: Any, places: Iterable[tuple[Path, Any]]) -> Any:
    """Return the container with other values at places that `held` looked into; lists and tuples on the way are
    copied, each of them once.

    Raises what a wrong path raises.
    """
    changed: Any = dict(container) if type(container) is dict else list(container)
    inner: dict[int | str, list[tuple[Path, Any]]] = {}
    for (place, *within), value in places:
        if within:
            inner.setdefault(place, []).append((within, value))
        else:
            changed[place] = value
    for place, below in inner.items():
        changed[place] = put(changed[place], below)
    return tuple(changed) if type(container) is tuple else changed


def restore(exc: BaseException, attributes: dict[str, Any]) -> None:
    """Give an instance what `state` found; its `__setattr__` and its properties are not asked."""
    descriptors = _descriptors(type(exc))
    for name, value in attributes.items():
        descriptor = descriptors.get(name)
        if descriptor is None:
            if name != "__notes__":
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
        elif base is ImportError:
            found.pop("name_from", None)  # Python 3.12 imports the module again to show an error that has it
    return found
