"""The end of a process that has nothing but functions of users to take leave of.

An interpreter that ends takes all modules apart. In a forked process that copies most of the memory which it
shares with others, and takes longer than all else that the process of a stage does.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
from collections.abc import Collection
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader
from types import FunctionType, ModuleType
from typing import Any, Final

__all__ = ["PARENT", "end"]

PARENT: Final = "atasks parent"
"""The name of the daemon thread that uses nothing but atasks."""

_PYTHONS: Final = sys.stdlib_module_names | {"atasks"}
_WRITERS: Final = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
_USED: Final = (FunctionType, ModuleType, type)
"""The types of what finalizers use of their modules."""
_LAST: Final = frozenset({"__builtins__", "__name__"})


def end(own: Collection[str]) -> None:
    """End this process with the exit code 0, as the interpreter would, but for taking modules apart that are
    Python's or have one of these names: wait for threads, run what is registered with `atexit`, write what files
    have in hand, finalize what other modules have. Returns where a library that is not written in Python may have
    something to do at the end, where daemon threads may use what is to be finalized, and where output cannot be
    written: the interpreter ends the process then."""
    came = {name: module for name, module in sys.modules.items() if name not in own}
    others = {name for name in came if name.partition(".")[0] not in _PYTHONS}
    if "_ctypes" in sys.modules or any(_is_extension(came[name]) for name in others):
        return
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    del came
    for each in gc.get_objects():  # before the collector closes what is below a text
        if type(each) in _WRITERS:
            with suppress(Exception):  # a file of users raises anything
                each.flush()
    for name in others:
        sys.modules.pop(name, None)
    gc.collect()
    # What is left of modules is held by Python's, by a handler of signals or logs, say.
    left = [each for each in gc.get_objects() if type(each) is dict and "__spec__" in each]
    left = [each for each in left if each.get("__name__") in others]
    if left and any(each.daemon and each.name != PARENT for each in threading.enumerate()):
        return  # they may use what they would find gone, and the interpreter alone can stop them
    for stays in (_USED, ()) if left else ():
        for names in left:
            gone = [name for name, value in names.items() if not issubclass(type(value), stays)]
            names.update(dict.fromkeys(name for name in gone if name not in _LAST))
        gc.collect()
    with suppress(OSError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(0)


def _is_extension(module: Any) -> bool:
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), ExtensionFileLoader)
