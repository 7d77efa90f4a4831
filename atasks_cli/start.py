"""The entry point of the `atasks` command: probes start without the rest of the package."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; `atasks health` alone imports nothing more than it needs."""
    _open_streams()
    if sys.argv[1:2] == ["health"]:
        from atasks_cli.health import main as health

        sys.exit(health(sys.argv[2:]))
    try:
        from atasks.allocation import imports_that_stay

        with imports_that_stay():
            from atasks_cli.main import main as command_line
    except KeyboardInterrupt:  # a Ctrl-C while it begins
        sys.exit(130)
    command_line()


def _open_streams() -> None:
    """Put an empty file in the place of each standard stream that was closed, as by `>&-`: they are None then, and
    the next socket would have the number of one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the smallest number that is free
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))
