"""Which dotted name a module has on every side of a call, and how the command line loads it.

An atask is known by the name of its module, so a script must have the same name where it runs as `__main__` and
where a worker loads it. The rule: a file's name, preceded by the packages that contain it (the directories above
it that hold an `__init__.py`, without a gap). `script.py` is `script`, `pkg/sub/mod.py` is `pkg.sub.mod`,
`pkg/__init__.py` is `pkg`, `pkg/__main__.py` is `pkg.__main__`. A file name need not be an identifier
(`my-script.py` is `my-script`); dots in it become underscores, because a dot would mean a package.

A directory without `__init__.py` is no package here, although `python -m directory.module` takes it for one: give
it an `__init__.py` if the module is to be run both ways.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from atasks.errors import LoadError, closest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAIN_NAMES",
    "UNGUARDED",
    "Program",
    "adopt",
    "dotted_name",
    "explained",
    "follow",
    "importing",
    "is_importing",
    "is_waited_in",
    "load",
    "main_name",
    "named",
]

MAIN_NAMES = frozenset({"__main__", "__mp_main__"})
"""Values of `__module__` in the program that was started, and in processes that `multiprocessing` spawns of it."""

UNGUARDED = (
    "a module starts worker processes when it is imported, and a worker process imports it: "
    'put what starts the program under if __name__ == "__main__":'
)
"""Why a process that imports modules for its calls may start no others: they would import the same."""

_importing = 0
_log = logging.getLogger("atasks")
_resolved: tuple[ModuleType, str | None] | None = None


@contextmanager
def importing() -> Iterator[None]:
    """The block in which a process imports what its calls need."""
    global _importing
    _importing += 1
    try:
        yield
    finally:
        _importing -= 1


def is_importing() -> bool:
    """Tell whether this is a process that imports just now what its calls need."""
    return _importing > 0


def is_waited_in(name: str) -> bool:
    """Tell whether another thread is importing this module, or the package that it is in, whose code waits there
    for an event loop or for atasks. Whoever imports it meanwhile waits for that thread."""
    package = name.partition(".")[0]
    if package != name and is_waited_in(package):
        return True
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if not getattr(spec, "_initializing", False):
        return False
    here = threading.get_ident()
    for frame in [frame for ident, frame in sys._current_frames().items() if ident != here]:
        inner: FrameType | None = frame
        waits = False
        while inner is not None:
            module = inner.f_globals.get("__name__")
            if module == name and inner.f_code.co_name == "<module>":
                return waits
            waits = waits or (isinstance(module, str) and module.partition(".")[0] in _WAITING)
            inner = inner.f_back
    return False


_WAITING = frozenset({"asyncio", "atasks"})


class Program(ModuleType):
    """The program that a runner (cProfile, trace) executes as `__main__` in a scope of its own, which is no
    module's: the names of the scope are those of this module."""

    def __init__(self, scope: dict[str, Any]) -> None:
        super().__init__("__main__")
        own: dict[str, Any] = vars(ModuleType)["__dict__"].__get__(self)
        own.clear()  # all others are looked up in the scope
        own.update(_scope=scope, __spec__=scope.get("__spec__"))

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        scope: dict[str, Any] = self._scope
        return scope

    def __getattr__(self, name: str) -> Any:
        try:
            return self._scope[name]
        except KeyError:
            raise AttributeError(f"the program that runs as __main__ has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._scope[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._scope[name]
        except KeyError:
            raise AttributeError(name) from None


def adopt(scope: dict[str, Any]) -> bool:
    """Tell whether what is defined in this scope is the program's: `__main__` leads to it, from now on at the
    latest.

    A runner that was started as `python -m cProfile program.py` is `__main__` itself, and executes the program in
    a scope of that name. As newer runners do, the program takes its place. False where `__main__` has atasks of
    its own, and where the scope has no file that others could import.
    """
    global _owner, _runner
    main = sys.modules["__main__"]
    if scope is not vars(main):
        file = scope.get("__file__")
        if scope.get("__name__") != "__main__" or not isinstance(file, str) or not file.endswith(".py"):
            return False
        if main is _owner:
            return False
        _runner, main = main, Program(scope)
        sys.modules["__main__"] = main
    _owner = main
    return True


_owner: ModuleType | None = None
"""`__main__`, if it has defined atasks."""
_runner: ModuleType | None = None
"""The runner whose place a program has taken: nobody else may refer to it."""


def main_name() -> str | None:
    """The dotted name under which `__main__` can be imported elsewhere, or None.

    From then on `sys.modules[name]` is `__main__` itself, so that a class of the script is one class, whichever
    name it is looked up by. It takes the place of a copy that was imported before, as a package makes one that
    imports the module which `python -m` runs; what others have from the copy stays theirs. The directory that
    holds the script's outermost package is appended to `sys.path`, if it was not there.

    None for a prompt, a notebook, `python -c`, a program without a `.py` name, and a script whose name belongs to
    another loaded module, which is logged: what such a script defines can only travel by value.
    """
    global _resolved
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__") and "__mp_main__" in sys.modules:
        main = sys.modules["__mp_main__"]  # a spawned process that is about to import its parent's script
    if _resolved is None or _resolved[0] is not main:
        _resolved = main, _resolve(main)
    return _resolved[1]


def _resolve(main: ModuleType) -> str | None:
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if isinstance(spec, ModuleSpec) and spec.name != "__main__":
        if spec.name.partition(".")[0] in sys.stdlib_module_names:
            return None  # `python -m asyncio` and other prompts and runners: no worker will find the code there
        name = spec.name
    elif isinstance(file, str) and file.endswith(".py"):
        name, root = dotted_name(_path(file))
        if name == "__main__":
            return None
        if "." in name and str(root) not in sys.path:
            sys.path.append(str(root))  # unpickling imports the outermost package too
        if _path(file).name == "__init__.py":
            main.__path__ = [str(_path(file).absolute().parent)]
    else:
        return None
    known = sys.modules.setdefault(name, main)
    if known is not main and not _is_file(known, file):
        _log.warning(
            "%s cannot be known as %r, the name of another module (%s): its atasks cannot be found by a worker; "
            "rename the file",
            file,
            name,
            _origin(known),
        )
        return None
    if known is not main:
        _replace(name, known, main)
    return name


def _replace(name: str, copy: ModuleType, main: ModuleType) -> None:
    """Let the name lead to the program: a package that imports the module which `python -m` then runs has made a
    copy of it, with classes of its own."""
    sys.modules[name] = main
    package, _, word = name.rpartition(".")
    if getattr(sys.modules.get(package), word, None) is copy:
        setattr(sys.modules[package], word, main)


def _path(file: str | Path) -> Path:
    from pathlib import Path  # slow to import, and needed only where a file is loaded

    return Path(file)


def dotted_name(path: Path) -> tuple[str, Path]:
    """The dotted name of a Python file, and the directory to be put on `sys.path` for it.

    The directory of a plain script is the one that a symbolic link leads to, as with `python script.py`; its name
    is the one it was given by, link or not. A file `__main__.py` outside of a package has no name but `__main__`.
    """
    path = _path(os.path.abspath(path))
    packages: list[str] = []
    root = path.parent
    while "." not in root.name and root != root.parent and (root / "__init__.py").is_file():
        packages.insert(0, root.name)
        root = root.parent
    if not packages:
        return path.stem.replace(".", "_"), _path(os.path.realpath(path)).parent
    if path.name != "__init__.py":
        packages.append(path.stem.replace(".", "_"))
    return ".".join(packages), root


def load(target: str) -> ModuleType:
    """Import what the command line was given: a file (`pkg/mod.py`) or a dotted module name (`pkg.mod`).

    Whatever ends in `.py` or holds a path separator is a file. It is imported under its dotted name, with its root
    at the front of `sys.path`, as `python FILE` does; a module gets the current directory there, as `python -m`
    does. A module that is loaded already is not imported again.

    Raises `LoadError`, one line that says what to do; an exception of the module's own is its `__cause__`.
    """
    main_name()
    if target.endswith(".py") or os.sep in target or (os.altsep is not None and os.altsep in target):
        return _load_file(_path(target))
    return _load_module(target)


def _load_file(path: Path) -> ModuleType:
    _check_file(path)
    name, root = dotted_name(path)
    if name == "__main__":
        raise LoadError(
            f"{path} is in no package, so a worker cannot tell it from other programs: rename the file"
        )
    _put_first(root)
    if name not in sys.modules:
        package = name.rpartition(".")[0]
        if package:
            _import(package, str(path))
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None and "." not in name:  # no finder knows a file of such a name, or it is reached by a link
            return _import_from(name, path)
        if spec is None or spec.origin is None or not os.path.samefile(spec.origin, path):
            raise LoadError(
                _taken(path, name, spec.origin if spec else _origin(sys.modules[name.partition(".")[0]]))
            )
        _import(name, str(path))
    module = sys.modules[name]
    if not _is_file(module, path):
        raise LoadError(_taken(path, name, _origin(module)))
    return module


def _check_file(path: Path) -> None:
    """Refuse what is no Python file, and say which one may have been meant."""
    if path.is_dir():
        entries = [name for name in ("__main__.py", "__init__.py") if (path / name).is_file()]
        entries = entries or sorted(entry.name for entry in path.glob("*.py"))[:3]
        hint = (
            f"name a file in it: {_either(str(path / entry) for entry in entries)}" if entries else "name a file"
        )
        raise LoadError(f"{path} is a directory: {hint}")
    if path.is_file():
        if path.suffix != ".py":
            raise LoadError(f"{path} is not a Python file by its name: rename it to {path.name}.py")
        return
    if not path.parent.is_dir():
        raise LoadError(f"no such file: {path} (there is no directory {path.parent})")
    near = [path.parent / name for name in closest(path.name, (entry.name for entry in path.parent.glob("*.py")))]
    module = _path(os.path.join(*path.stem.split("."))).with_suffix(
        ".py"
    )  # pkg.mod.py, a mixture of both spellings
    if module.is_file() and module not in near:
        near.insert(0, module)
    hint = f"did you mean {_either(map(str, near))}?" if near else "give a Python file or a module name"
    raise LoadError(f"no such file: {path}; {hint}")


def _load_module(name: str) -> ModuleType:
    if name == "__main__" or name.startswith("-") or not all(name.split(".")):
        raise LoadError(f"not a module name: {name!r}; give one like pkg.mod, or a file like pkg/mod.py")
    here = _path(os.getcwd())
    _put_first(here)
    local = here.joinpath(*name.split("."))
    if name not in sys.modules:
        _import(name, name)
    module = sys.modules[name]
    for file in (local / "__init__.py", local.with_name(local.name + ".py")):
        if file.is_file() and not _is_file(module, file):
            raise LoadError(_taken(file.relative_to(here), name, _origin(module)))
    if getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
        raise LoadError(f"{name} is a directory without __init__.py: name a module in it, as in {name}.mod")
    return module


def _import(name: str, target: str) -> None:
    """Import a module and the packages that contain it, telling one that does not exist from one that fails."""
    importlib.invalidate_caches()
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        parent, part = ".".join(parts[: length - 1]), ".".join(parts[:length])
        if part in sys.modules:
            continue
        if parent and not hasattr(sys.modules[parent], "__path__"):
            raise LoadError(f"no such module: {part}; {parent} is a module, not a package: give {parent}")
        with explained(target):
            if importlib.util.find_spec(part) is None:
                raise LoadError(_missing(name, parent, parts[length - 1]))
            importlib.import_module(part)


def _import_from(name: str, path: Path) -> ModuleType:
    """Import a file under a name that leads to it only here."""
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with explained(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return sys.modules[name]


def named(name: str) -> object:
    """Import and return what `module:name` stands for, as in "shop.boot:prepare".

    Raises LoadError for whatever the import raises, and ValueError for another form of name, and where the module
    has nothing of that name.
    """
    module, colon, path = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise ValueError(f"{name!r} is no name of the form module:name")
    with explained(module):
        found = importlib.import_module(module)
    try:
        return follow(found, path)
    except AttributeError:
        raise ValueError(f"{module} has no {path}") from None


@contextmanager
def explained(target: str) -> Iterator[None]:
    """Turn whatever a module raises on import, but a keyboard interrupt, into a `LoadError` of one line."""
    try:
        yield
    except (LoadError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        advice = 'put what it does when it is run under if __name__ == "__main__":'
        raise LoadError(f"{target} ends the program when it is imported{_where(error)}: {advice}") from error
    except BaseException as error:
        text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
        text = text if len(text) <= 500 else text[:500] + "..."
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise LoadError(f"cannot import {target}: {reason}{_where(error)}") from error


def _where(error: BaseException) -> str:
    """` (file:line)` of the deepest frame that is neither a library's nor the interpreter's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({_shown(error.filename)}:{error.lineno})"
    import sysconfig  # for an error only, as `pkgutil` below

    paths = sysconfig.get_paths()
    libraries = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    libraries.append(os.path.dirname(__file__))
    inside = tuple(os.path.join(os.path.realpath(directory), "") for directory in libraries)
    found = ""
    frame = error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if not file.startswith("<") and not os.path.realpath(file).startswith(inside):
            found = f" ({_shown(file)}:{frame.tb_lineno})"
        frame = frame.tb_next
    return found


def _missing(name: str, parent: str, part: str) -> str:
    """Return the text of the error for a module that does not exist."""
    import pkgutil

    if not parent and _path(name).is_file():
        return f"{name} is not a Python file by its name: rename it to {name}.py"
    places = list(sys.modules[parent].__path__) if parent else [os.getcwd()]
    prefix = f"{parent}." if parent else ""
    near = [prefix + word for word in closest(part, (found.name for found in pkgutil.iter_modules(places)))]
    missing = prefix + part
    if near:
        return f"no such module: {missing}; did you mean {_either(near)}?"
    return f"no such module: {missing}; is it in {_either(places)}, or installed in {sys.prefix}?"


def _taken(path: Path, name: str, other: str | None) -> str:
    return (
        f"{path} would be the module {name!r}, which is already {other or 'a built-in module'}: "
        f"rename it, or put it in a package (a directory with an __init__.py)"
    )


def _put_first(directory: Path) -> None:
    if sys.path[:1] != [str(directory)]:
        sys.path.insert(0, str(directory))


def _is_file(module: ModuleType, path: object) -> bool:
    """Return True if the module was loaded from that file."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not isinstance(path, str | os.PathLike):
        return False
    return os.path.realpath(file) == os.path.realpath(path)


def _origin(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return _shown(file) if isinstance(file, str) else "a built-in module"


def _shown(file: str) -> str:
    """A path as the user would type it here."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative


def _either(words: Iterator[str] | list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def follow(found: Any, qualname: str) -> Any:
    """Return the object that a qualified name leads to, from a module or a class. Raises AttributeError."""
    for name in qualname.split("."):
        found = getattr(found, name)
    return found
