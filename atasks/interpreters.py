"""The command of a Python interpreter like this one."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["command"]


def command() -> list[str]:
    """This interpreter, with the options that it was given (`-O`, `-X`, `-W` and the like), as `multiprocessing`
    passes them on."""
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *options]
