"""The entry point of the `atasks` command: probes start without the rest of the package."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; `atasks health` alone imports nothing more than it needs."""
    if sys.argv[1:2] == ["health"]:
        from atasks_cli.health import main as health

        sys.exit(health(sys.argv[2:]))
    collects = gc.isenabled()
    gc.disable()  # what is imported stays: looking through it again and again takes a tenth of the time
    try:
        from atasks_cli.main import main as command_line
    except KeyboardInterrupt:  # a Ctrl-C while it begins
        sys.exit(130)
    gc.freeze()
    if collects:
        gc.enable()
    command_line()
