"""The start command of atasks 0.0.x: `python -m atasks.run FILE_OR_MODULE... -M MODE -T TRANSPORT -U URL`.

Its options are translated to those of `atasks run`; `-H` and `-L`, which have no counterpart, are errors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from atasks_cli.main import main as command_line
from atasks_cli.original import translate

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Run `atasks run` with these options, of which the first is the program's name. Ends in SystemExit."""
    command_line(translate(argv[1:]))


if __name__ == "__main__":
    sys.path.insert(0, "")
    main(sys.argv)
